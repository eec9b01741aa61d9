"""Whatever happens to a stored file, it is noticed, nothing wrong is given out, and the next put mends it."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from torch_piecewise.store import Draft, Hit, Miss, Namespace, OpenStore
from torch_piecewise.store.files import Files
from torch_piecewise.store.inspection import verify

CASES = 1200
NAMES = ["a", "b"]
SPACES = [Namespace(), Namespace("vision", 1, 2)]


def draft(name: str) -> Draft:
    return Draft(
        ingredients=[["name", name], ["module", [["eps", 1e-5]]]],
        blobs={"artifact": name.encode() * 300, "shared": b"the same for all" * 20, "empty": b""},
        meta={"name": name},
        companions={"graph.py": f"# {name}\n", "code.py": "pass\n"},
    )


def kind_of(path: Path) -> str:
    if path.name == "manifest.json":
        return "manifest"
    return "companion" if path.suffix == ".py" else "blob"


def stored_files(root: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {"manifest": [], "companion": [], "blob": []}
    for folder in ("blobs", "entries"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file():
                files[kind_of(path)].append(path)
    return files


def truncate(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def flip(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    altered = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        altered[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(altered)


def empty(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    return b""


def replace(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    return chance.choice(others)


def extend(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    return data + chance.choice([b"\0", b" ", b"\n", b"}", data])


DAMAGES = [truncate, flip, empty, replace, extend]


@pytest.fixture
def root():
    """In memory where that is possible: the kernel flushes a file that is renamed over another."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None)
    yield Path(folder) / "cache"
    shutil.rmtree(folder)


@pytest.fixture
def spaces(opened: OpenStore) -> list[OpenStore]:
    return [opened.in_namespace(space) for space in SPACES]


def every_entry(spaces) -> list[tuple[OpenStore, str]]:
    return [(space, name) for space in spaces for name in NAMES]


def put_all(spaces, key) -> None:
    for space, name in every_entry(spaces):
        space.store.put(key(name), draft(name))


def read_all(spaces, key) -> list[tuple[OpenStore, str]]:
    """Every entry that is not whole any more; fails on a wrong byte."""
    misses = []
    for space in spaces:
        for name in NAMES:
            found = space.store.get(key(name))
            if isinstance(found, Miss):
                misses.append((space, name))
                continue
            assert found.value.meta == {"name": name}
            assert found.value.ingredients == draft(name).ingredients
            blobs = {role: space.store.blobs.read(ref) for role, ref in found.value.blobs.items()}
            read = {role: data.value for role, data in blobs.items() if isinstance(data, Hit)}
            assert read.items() <= draft(name).blobs.items()
            if len(read) < len(blobs):
                misses.append((space, name))
    return misses


def test_damage_is_always_noticed_never_given_out_and_always_mended(opened, spaces, root, key):
    chance, seen = random.Random(20), Counter()
    put_all(spaces, key)
    for _ in range(CASES):
        texts = {path: path.read_bytes() for paths in stored_files(root).values() for path in paths}
        kind = chance.choice(["manifest", "manifest", "blob", "blob", "companion"])
        path = chance.choice([path for path, text in texts.items() if text and kind_of(path) == kind])
        data = texts[path]
        others = [text for other, text in texts.items() if text != data and kind_of(other) == kind]
        damage = chance.choice(DAMAGES)
        damaged = damage(data, others, chance)
        if damaged == data:
            continue
        path.write_bytes(damaged)
        seen[kind, damage.__name__] += 1

        where = str(path.relative_to(root))
        noticed = verify(opened.disk.layout, Files()).problems
        assert where in [problem.path for problem in noticed], (where, damage)
        misses = read_all(spaces, key)
        # Companions are never read back, so damage to one is told by verify alone.
        assert bool(misses) == (kind != "companion"), (where, damage)
        for space, name in misses or every_entry(spaces):
            space.store.put(key(name), draft(name))
        assert read_all(spaces, key) == []
        if kind == "companion":
            assert path.read_bytes() == data
    assert sum(seen.values()) >= 1000
    assert len(seen) == 3 * len(DAMAGES)
    assert verify(opened.disk.layout, Files()).problems == ()


def test_two_manifests_that_were_exchanged_are_both_misses(spaces, root, key):
    put_all(spaces, key)
    first, second = stored_files(root)["manifest"][:2]
    text = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(text)
    assert len(read_all(spaces, key)) == 2
    put_all(spaces, key)
    assert read_all(spaces, key) == []


def test_a_root_where_everything_is_damaged_is_mended_by_putting(spaces, root, key):
    put_all(spaces, key)
    for paths in stored_files(root).values():
        for path in paths:
            path.write_bytes(b"garbage")
    assert len(read_all(spaces, key)) == len(NAMES) * len(spaces)
    put_all(spaces, key)
    assert read_all(spaces, key) == []
