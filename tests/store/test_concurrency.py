"""Processes and threads that start cold on one root: each thing is made once, whoever dies."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from torch_piecewise.store import Draft, Hit, open_store
from torch_piecewise.store.files import Files

SCRIPT = Path(__file__).parent / "scripts" / "flight_workers.py"
PROCESSES, THREADS, KEYS = 8, 4, 6


def told_by(tmp_path: Path, *options: str):
    numbers = [str(number) for number in (PROCESSES, THREADS, KEYS)]
    command = [
        sys.executable,
        str(SCRIPT),
        str(tmp_path / "cache"),
        str(tmp_path / "log"),
        *numbers,
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["statuses"] == [0] * PROCESSES, done.stderr
    return told["lines"]


def test_eight_processes_of_four_threads_make_each_thing_once(tmp_path):
    lines = told_by(tmp_path)
    made = Counter(line.split()[1] for line in lines if line.startswith("made"))
    assert made == {str(number): 1 for number in range(KEYS)}
    assert lines.count("finished") == PROCESSES * THREADS
    assert not [line for line in lines if line.startswith("wrong")]


def test_when_the_owner_is_killed_in_the_middle_the_others_finish(tmp_path):
    lines = told_by(tmp_path, "kill")
    began = [line.split()[2] for line in lines if line.startswith("began 0 ")]
    made = Counter(line.split()[1] for line in lines if line.startswith("made"))
    assert len(began) == 2
    assert made == {str(number): 1 for number in range(KEYS)}
    assert lines.count("finished") == PROCESSES * THREADS
    assert not [line for line in lines if line.startswith("wrong")]


def test_a_reader_never_sees_a_half_written_file(tmp_path):
    writer, reader = (open_store(tmp_path / "cache", files=Files(durable=False)) for _ in range(2))
    key, stop = "a" * 64, threading.Event()

    def draft(version: int) -> Draft:
        # Long enough that writing takes a while.
        names = [["version", version], *([str(number), "x" * 100] for number in range(3000))]
        return Draft(names, {"artifact": bytes([version % 256]) * 300_000})

    def publish() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            writer.store.put(key, draft(version))

    writer.store.put(key, draft(0))
    thread = threading.Thread(target=publish)
    thread.start()
    try:
        seen = set()
        for _ in range(150):
            entry = reader.store.get(key).value
            version = entry.ingredients[0][1]
            seen.add(version)
            assert reader.store.blobs.read(entry.blobs["artifact"]) == Hit(bytes([version % 256]) * 300_000)
    finally:
        stop.set()
        thread.join()
    assert len(seen) > 3
