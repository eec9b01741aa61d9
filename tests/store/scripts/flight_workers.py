"""Starts many processes and threads cold on one root. Run by test_concurrency.py; prints one JSON object.

Arguments: root, log, processes, threads, keys, and ``kill`` to kill the first owner in the middle of making.

The processes are forked from this one, which has imported everything, and open the root each for itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from torch_piecewise.store import Draft, Miss, OpenStore, open_store


def key_of(number: int) -> str:
    return hashlib.sha256(f"key {number}".encode()).hexdigest()


def content(number: int) -> bytes:
    return f"artifact {number}".encode() * 500


def note(log: Path, line: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def ask(opened: OpenStore, log: Path, number: int, hang: bool = False) -> bytes:
    def make(miss: Miss) -> tuple[bytes, Draft]:
        note(log, f"began {number} {os.getpid()}")
        time.sleep(3600 if hang else 0.02)
        data = content(number)
        note(log, f"made {number} {os.getpid()}")
        return data, Draft([["number", number]], {"artifact": data})

    outcome = opened.get_or_make(
        key_of(number), load=lambda entry: opened.store.blobs.read(entry.blobs["artifact"]), make=make
    )
    return outcome.value


def work(root: Path, log: Path, threads: int, keys: int, seed: int) -> None:
    opened = open_store(root)

    def run(thread: int) -> None:
        numbers = list(range(keys))
        random.Random(seed * 100 + thread).shuffle(numbers)
        for number in numbers:
            if ask(opened, log, number) != content(number):
                note(log, f"wrong {number}")
        note(log, "finished")

    running = [threading.Thread(target=run, args=(thread,)) for thread in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def fork(task: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            task()
            status = 0
        finally:
            os._exit(status)
    return child


def main() -> None:
    root, log = Path(sys.argv[1]), Path(sys.argv[2])
    processes, threads, keys = map(int, sys.argv[3:6])
    owner = None
    if "kill" in sys.argv[6:]:
        owner = fork(lambda: ask(open_store(root), log, 0, hang=True) and None)
        while not log.exists():
            time.sleep(0.005)
    children = [fork(lambda seed=seed: work(root, log, threads, keys, seed)) for seed in range(processes)]
    if owner is not None:
        time.sleep(0.5)
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    print(json.dumps({"statuses": statuses, "lines": log.read_text().splitlines()}))


if __name__ == "__main__":
    main()
