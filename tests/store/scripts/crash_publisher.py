"""Kills publishers and looks at what they leave. Run by test_crash.py; prints one JSON object.

Arguments: root, number of random kills (0: at every step instead), seed.

Publishers are forked from this process, which has no threads and has imported everything, so that a kill
costs milliseconds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from torch_piecewise.store import Draft, Hit, Miss, open_store
from torch_piecewise.store.files import Files, no_step
from torch_piecewise.store.inspection import verify

KEYS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2)]


def content(key: str, version: int, role: str) -> bytes:
    """What a blob has to hold; three versions in a row share one, so that blobs are used again."""
    if role == "shared":
        version -= version % 3
    seed = f"{key} {version} {role}".encode()
    return hashlib.sha256(seed).digest() * (1 + hashlib.sha256(seed).digest()[0] * 16)


def draft(key: str, version: int) -> Draft:
    return Draft(
        ingredients=[["version", version]],
        blobs={role: content(key, version, role) for role in ("artifact", "shared")},
        meta={"version": version},
        companions={"graph.py": f"# {version}\n", f"old_{version % 2}.py": "x"},
    )


def publish(root: Path, version: int, at_step: Callable[[str], None], times: int | None) -> None:
    store = open_store(root, files=Files(at_step=at_step)).store
    while times is None or times > 0:
        for key in KEYS:
            store.put(key, draft(key, version))
        version += 1
        times = None if times is None else times - 1


def wrong(root: Path) -> list[str]:
    """Look as the next start does: each entry is absent, or every byte of it is right."""
    opened = open_store(root)
    store, found = opened.store, []
    for key in KEYS:
        entry = store.get(key)
        if isinstance(entry, Miss):
            if entry.cause.value != "absent":
                found.append(entry.reason)
            continue
        version = entry.value.meta["version"]
        for role, ref in entry.value.blobs.items():
            if store.blobs.read(ref) != Hit(content(key, version, role)):
                found.append(f"{key[:6]} {version} {role}")
    opened.close()
    return found


def leftovers(root: Path) -> list[str]:
    opened = open_store(root)
    opened.housekeeper.prune(grace_seconds=0)
    entries = list(opened.disk.entries())
    expected = {"CACHEDIR.TAG", "leases.lock", "flights.lock"}
    for entry in entries:
        place = opened.disk.layout.entry(opened.disk.namespace.folder_name(), entry.key)
        files = [place.manifest, *(place.folder / name for name in entry.companions)]
        files += [opened.disk.layout.blob(ref.digest) for ref in entry.blobs.values()]
        expected |= {str(path.relative_to(root)) for path in files}
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    problems = [f"{problem.path}: {problem.what}" for problem in verify(opened.disk.layout, Files()).problems]
    return sorted(there - expected) + problems


def fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def kill_at_random(root: Path, kills: int, seed: int) -> dict[str, object]:
    chance, torn = random.Random(seed), []
    for number in range(kills):
        child = fork(lambda first=number * 100: publish(root, first, no_step, None))
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        torn += wrong(root)
    return {"kills": kills, "wrong": torn}


def kill_at_steps(root: Path) -> dict[str, object]:
    names: list[str] = []
    publish(root, 0, names.append, 1)
    torn = []
    for last in itertools.count():
        child = fork(lambda first=last + 1, last=last: publish(root, first, _killer(last), 1))
        _, status = os.waitpid(child, 0)
        torn += wrong(root)
        if not os.WIFSIGNALED(status):
            return {"kills": last, "wrong": torn, "steps": sorted(set(names))}
    raise AssertionError("a publisher that is not killed ends")


def _killer(last: int) -> Callable[[str], None]:
    seen: list[str] = []

    def at_step(name: str) -> None:
        seen.append(name)
        if len(seen) > last:
            os.kill(os.getpid(), signal.SIGKILL)

    return at_step


def main() -> None:
    root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    told = kill_at_random(root, kills, seed) if kills else kill_at_steps(root)
    told["leftovers"] = leftovers(root)
    publish(root, 10**6, no_step, 1)
    store = open_store(root).store
    told["after"] = [store.get(key).value.meta["version"] for key in KEYS] + wrong(root)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
