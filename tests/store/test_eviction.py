from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from torch_piecewise.errors import StoreError
from torch_piecewise.store import Draft, Hit, Miss, Namespace, open_store
from torch_piecewise.store.eviction import LimitedStore
from torch_piecewise.store.files import Files
from torch_piecewise.store.locks import NoLeases

KILO = 1000


def fill(opened, key, names, used=()) -> None:
    """Entries of about 10 kB each, last used in the order of ``names``, then of ``used``; none is in use."""
    for name in names:
        opened.store.put(key(name), Draft([["name", name]], {"x": name.encode() * 10 * KILO}))
    for age, name in enumerate(reversed([*names, *used])):
        manifest = next(opened.disk.layout.entries.glob(f"*/{key(name)[:2]}/{key(name)[2:]}/manifest.json"))
        if manifest.stat().st_mtime > time.time() - 50:
            os.utime(manifest, (0, time.time() - 100 - age))
    age_blobs(opened.disk.layout.root)
    opened.close()


def age_blobs(root: Path, seconds: float = 1000.0) -> None:
    for path in (root / "blobs").rglob("*"):
        if path.is_file():
            os.utime(path, (0, time.time() - seconds))


def kept(opened, names, key) -> str:
    return "".join(
        name for name in names if isinstance(opened.disk._peek(opened.disk._place(key(name))), Hit)
    )


def test_beyond_the_limit_the_least_recently_used_go_first(opened, key):
    fill(opened, key, "abcdef")
    report = opened.housekeeper.prune(limit_bytes=35 * KILO)
    assert kept(opened, "abcdef", key) == "def"
    assert (report.entries, report.blobs) == (3, 3)
    assert report.size_bytes == opened.housekeeper.size() <= 35 * KILO


def test_getting_an_entry_saves_it_from_going(opened, reopen, key):
    fill(opened, key, "abcdef")
    other = reopen()
    other.store.get(key("a"))
    other.close()
    opened.housekeeper.prune(limit_bytes=35 * KILO)
    assert kept(opened, "abcdef", key) == "aef"


def test_an_entry_that_is_used_after_the_clean_up_looked_stays(opened, key):
    from dataclasses import replace

    fill(opened, key, "ab")

    class UsedMeanwhile:
        work = True

        def try_exclude(self, digest: str):
            opened.disk._place(key("a")).manifest.touch()
            return NoLeases().try_exclude(digest)

    replace(opened.housekeeper, leases=UsedMeanwhile()).prune(limit_bytes=0)
    assert kept(opened, "ab", key) == "a"


def test_file_systems_own_access_times_do_not_count(opened, key):
    fill(opened, key, "abc")
    manifest = opened.disk._place(key("a")).manifest
    os.utime(manifest, (time.time() + 1000, manifest.stat().st_mtime))
    opened.housekeeper.prune(limit_bytes=15 * KILO)
    assert kept(opened, "abc", key) == "c"


def test_without_a_limit_every_entry_stays(opened, key):
    fill(opened, key, "abc")
    report = opened.housekeeper.prune()
    assert kept(opened, "abc", key) == "abc"
    assert report.freed_bytes == 0


def test_entries_that_nobody_used_for_long_go_on_request(opened, key):
    fill(opened, key, "abc")
    os.utime(opened.disk._place(key("b")).manifest, (0, time.time() - 10_000))
    opened.housekeeper.prune(unused_seconds=5000)
    assert kept(opened, "abc", key) == "ac"


def test_what_is_in_use_stays_and_is_counted(opened, reopen, key):
    fill(opened, key, "abc")
    user = reopen()
    user.disk.leases.take(key("a"))
    report = opened.housekeeper.prune(limit_bytes=0)
    assert kept(opened, "abc", key) == "a"
    assert report.in_use == 1
    assert isinstance(user.store.blobs.read(user.store.get(key("a")).value.blobs["x"]), Hit)
    user.close()


def test_an_entry_that_a_process_got_or_put_stays_as_long_as_it_runs(root, opened, key):
    fill(opened, key, "ab")
    code = """
        import sys, time
        from pathlib import Path
        from torch_piecewise.store import Draft, open_store
        opened = open_store(Path(sys.argv[1]))
        opened.store.get(sys.argv[2])
        opened.store.put("c" * 64, Draft([], {"x": b"mine"}))
        print("ready", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(root), key("a")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    opened.housekeeper.prune(limit_bytes=0, grace_seconds=0)
    assert isinstance(opened.disk._peek(opened.disk._place(key("a"))), Hit)
    assert isinstance(opened.disk._peek(opened.disk._place("c" * 64)), Hit)
    assert isinstance(opened.disk._peek(opened.disk._place(key("b"))), Miss)
    process.send_signal(signal.SIGKILL)
    process.wait()
    opened.housekeeper.prune(limit_bytes=0, grace_seconds=0)
    assert list(opened.disk.entries()) == []


def test_a_file_that_was_handed_out_stays_though_its_entry_was_replaced(opened, reopen, key):
    fill(opened, key, "a")
    user = reopen()
    path = user.store.blobs.file(user.store.get(key("a")).value.blobs["x"]).value
    opened.store.put(key("a"), Draft([], {"x": b"another"}))
    opened.close()
    opened.housekeeper.prune(grace_seconds=0)
    assert path.read_bytes() == b"a" * 10 * KILO
    user.close()
    opened.housekeeper.prune(grace_seconds=0)
    assert not path.exists()


def test_a_blob_that_another_entry_names_stays(opened, key):
    other = opened.in_namespace(Namespace("vision"))
    shared = Draft([], {"x": b"shared" * KILO})
    opened.store.put(key("a"), shared)
    other.store.put(key("a"), shared)
    os.utime(opened.disk._place(key("a")).manifest, (0, time.time() - 1000))
    age_blobs(opened.disk.layout.root)
    opened.close()
    report = opened.housekeeper.prune(unused_seconds=500)
    assert report.entries == 1
    entry = other.store.get(key("a")).value
    assert other.store.blobs.read(entry.blobs["x"]) == Hit(b"shared" * KILO)


def test_a_blob_named_by_a_manifest_of_a_later_format_stays(opened, key):
    fill(opened, key, "a")
    place = opened.disk._place(key("a"))
    text = place.manifest.read_bytes().replace(b'"format":1', b'"format":9')
    place.manifest.write_bytes(text)
    opened.housekeeper.prune(grace_seconds=0)
    assert len([path for path in opened.disk.layout.blobs.rglob("*") if path.is_file()]) == 1


def test_a_young_blob_that_nothing_names_yet_stays_and_an_old_one_goes(opened):
    opened.disk.blobs.write(b"of a put under way")
    opened.close()
    assert opened.housekeeper.prune().blobs == 0
    age_blobs(opened.disk.layout.root)
    assert opened.housekeeper.prune().blobs == 1


def test_an_old_blob_that_a_put_under_way_uses_again_stays(opened, reopen):
    opened.disk.blobs.write(b"used again")
    opened.close()
    age_blobs(opened.disk.layout.root)
    other = reopen()
    ref = other.disk.blobs.write(b"used again")
    opened.housekeeper.prune(grace_seconds=0)
    assert other.disk.blobs.read(ref) == Hit(b"used again")


def test_temp_files_of_the_dead_go_and_those_of_the_living_stay(opened, root):
    living = root / "blobs" / "ab" / f".x.{'0' * 32}.tmp"
    dead = root / "entries" / "backbone@0of1" / f".manifest.json.{'1' * 32}.tmp"
    other = root / "blobs" / "ab" / "notes.tmp"
    for path in (living, dead, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    import fcntl

    with living.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        report = opened.housekeeper.prune(grace_seconds=0)
    assert report.temps == 1
    assert living.exists()
    assert not dead.exists()
    assert other.exists()


@pytest.mark.parametrize("step", ["temp-created", "temp-written", "temp-flushed", "blob-published"])
def test_a_clean_up_in_the_middle_of_a_put_takes_nothing_from_it(root, reopen, key, draft, step):
    other, reports = reopen(), []

    def at_step(name: str) -> None:
        if name == step:
            reports.append(other.housekeeper.prune(grace_seconds=0))

    opened = open_store(root, files=Files(durable=False, at_step=at_step))
    opened.disk.put(key("a"), draft("a"))
    assert reports
    assert sum(report.freed_bytes for report in reports) == 0
    entry = opened.store.get(key("a")).value
    assert {role: opened.store.blobs.read(ref).value for role, ref in entry.blobs.items()} == draft("a").blobs


def test_a_folder_whose_manifest_was_never_published_goes(opened, root):
    folder = root / "entries" / "backbone@0of1" / "ab" / ("c" * 62)
    folder.mkdir(parents=True)
    (folder / "graph.py").write_text("half")
    assert opened.housekeeper.prune().leftovers == 0
    os.utime(folder / "graph.py", (0, time.time() - 1000))
    assert opened.housekeeper.prune().leftovers == 1
    assert not folder.exists()


def test_a_companion_that_its_manifest_does_not_name_goes(opened, key, draft):
    opened.store.put(key("a"), draft(companions={"old.py": "1"}))
    opened.store.put(key("a"), draft(companions={"new.py": "2"}))
    opened.close()
    opened.housekeeper.prune(grace_seconds=0)
    assert sorted(path.name for path in opened.disk._place(key("a")).folder.iterdir()) == [
        "manifest.json",
        "new.py",
    ]


@pytest.mark.parametrize("torn", [b"", b'{"format": 1, "blo', b"\0" * 500], ids=["empty", "half", "zeros"])
def test_a_torn_manifest_goes_with_what_it_alone_named(opened, key, draft, torn):
    for name in "ab":
        opened.store.put(key(name), draft(name, companions={"graph.py": "1"}))
    place = opened.disk._place(key("a"))
    place.manifest.write_bytes(torn)
    opened.close()
    report = opened.housekeeper.prune(grace_seconds=0)
    assert (report.entries, report.leftovers, report.in_use) == (0, 2, 0)
    assert not place.folder.exists()
    assert kept(opened, "ab", key) == "b"
    assert opened.housekeeper.prune(grace_seconds=0).freed_bytes == 0
    blobs = [path for path in opened.disk.layout.blobs.rglob("*") if path.is_file()]
    assert len(blobs) == len(opened.store.get(key("b")).value.blobs)


def test_a_torn_manifest_that_is_young_or_in_use_stays(opened, key, draft):
    opened.store.put(key("a"), draft("a"))
    place = opened.disk._place(key("a"))
    place.manifest.write_bytes(b"torn")
    assert opened.housekeeper.prune(grace_seconds=0).in_use > 0
    assert place.manifest.exists()
    opened.close()
    opened.housekeeper.prune(grace_seconds=100)
    assert place.manifest.exists()
    opened.housekeeper.prune(grace_seconds=0)
    assert not place.manifest.exists()


def test_a_manifest_of_a_newer_format_is_left_to_who_can_read_it(opened, key, draft):
    opened.store.put(key("a"), draft("a"))
    place = opened.disk._place(key("a"))
    newer = re.sub(rb'"format": ?\d+', b'"format":99', place.manifest.read_bytes())
    place.manifest.write_bytes(newer)
    opened.close()
    opened.housekeeper.prune(grace_seconds=0)
    assert place.manifest.read_bytes() == newer


def test_what_was_set_aside_goes(opened, root):
    (root / "quarantine").mkdir()
    (root / "quarantine" / "blob.abc.12345678").write_bytes(b"bad")
    report = opened.housekeeper.prune()
    assert (report.quarantined, report.freed_bytes) == (1, 3)
    assert not (root / "quarantine").exists()


def test_a_dry_run_counts_the_same_and_removes_nothing(opened, key, root):
    fill(opened, key, "abcd")
    (root / "quarantine").mkdir()
    (root / "quarantine" / "blob.abc.12345678").write_bytes(b"bad")
    before = sorted(root.rglob("*"))
    foretold = opened.housekeeper.prune(limit_bytes=25 * KILO, dry_run=True)
    assert sorted(root.rglob("*")) == before
    done = opened.housekeeper.prune(limit_bytes=25 * KILO)
    assert (foretold.entries, foretold.blobs, foretold.freed_bytes) == (
        done.entries,
        done.blobs,
        done.freed_bytes,
    )
    assert done.entries == 2


def test_two_clean_ups_do_not_meet(opened, reopen):
    from torch_piecewise.store.eviction import _PRUNE_LOCK

    held = opened.housekeeper.locks.try_acquire(_PRUNE_LOCK)
    assert reopen().housekeeper.prune().busy
    held.release()
    assert not reopen().housekeeper.prune().busy


def test_where_nothing_can_be_marked_as_in_use_only_the_old_goes(opened, key):
    from dataclasses import replace

    fill(opened, key, "ab")
    os.utime(opened.disk._place(key("a")).manifest, (0, time.time() - 10_000))
    age_blobs(opened.disk.layout.root, 10_000)
    careful = replace(opened.housekeeper, leases=NoLeases())
    careful.prune(limit_bytes=0, grace_seconds=0)
    assert kept(opened, "ab", key) == "b"


def test_a_put_beyond_the_limit_evicts_by_itself(root, key):
    opened = open_store(root, limit_bytes=55 * KILO, files=Files(durable=False))
    fill(opened, key, "abcd")
    opened.store.put(key("e"), Draft([], {"x": b"e" * 10 * KILO}))
    opened.store.put(key("f"), Draft([], {"x": b"f" * 10 * KILO}))
    assert kept(opened, "abcdef", key) == "cdef"
    assert opened.housekeeper.size() <= 55 * KILO


def test_what_cannot_go_is_not_tried_again_for_every_put(opened, key):
    class Counting:
        def __init__(self) -> None:
            self.calls = 0

        def size(self) -> int:
            return 200 * KILO

        def prune(self, *, limit_bytes: int):
            self.calls += 1
            return opened.housekeeper.prune()

    counting = Counting()
    store = LimitedStore(opened.store, opened.disk.blobs, counting, 100 * KILO)
    for name in "abcd":
        store.put(key(name), Draft([], {"x": name.encode()}))
    assert counting.calls == 1


def test_a_root_that_cannot_be_written_to_says_so(opened, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(opened.housekeeper.locks, "try_acquire", refuse)
    with pytest.raises(StoreError, match="while cleaning up"):
        opened.housekeeper.prune()
