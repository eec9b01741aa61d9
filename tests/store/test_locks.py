from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from torch_piecewise.store.files import Files
from torch_piecewise.store.locks import FileLocks, NoLeases, RangeLeases, RangeLocks, range_locks_work
from torch_piecewise.store.single_flight import Flights

A, B = "a" * 64, "b" * 64


@pytest.fixture(params=["bytes", "files"])
def make_locks(request, tmp_path):
    if request.param == "bytes":
        return lambda: RangeLocks(tmp_path / "flights.lock", Files())
    return lambda: FileLocks(tmp_path / "locks", Files())


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_lock_excludes_its_own_process_and_others_keys_do_not(make_locks):
    first, second = make_locks(), make_locks()
    held = first.try_acquire(A)
    assert second.try_acquire(A) is None
    assert first.try_acquire(A) is None
    other = second.try_acquire(B)
    assert other is not None
    held.release()
    again = second.try_acquire(A)
    assert again is not None
    again.release()
    other.release()


def test_releasing_twice_does_nothing(make_locks):
    locks = make_locks()
    held = locks.try_acquire(A)
    held.release()
    later = locks.try_acquire(A)
    held.release()
    assert locks.try_acquire(A) is None
    later.release()


HOLD = """
    import sys, time
    from pathlib import Path
    from torch_piecewise.store.files import Files
    from torch_piecewise.store.locks import FileLocks, RangeLeases, RangeLocks
    kind, path, key = sys.argv[1:]
    if kind == "leases":
        leases = RangeLeases(Path(path), Files())
        leases.take(key)
    else:
        held = (RangeLocks if kind == "bytes" else FileLocks)(Path(path), Files()).try_acquire(key)
        assert held is not None
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("kind", "name"), [("bytes", "flights.lock"), ("files", "locks")])
def test_a_killed_owner_loses_its_lock_at_once(tmp_path, kind, name):
    locks = (RangeLocks if kind == "bytes" else FileLocks)(tmp_path / name, Files())
    owner = run_python(HOLD, kind, tmp_path / name, A)
    assert owner.stdout.readline() == "held\n"
    assert locks.try_acquire(A) is None
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    held = locks.try_acquire(A)
    assert held is not None
    held.release()


def test_a_lock_does_not_outlive_its_owner_in_a_forked_child(tmp_path):
    path = tmp_path / "flights.lock"
    code = """
        import os, sys, time
        from pathlib import Path
        from torch_piecewise.store import open_store
        opened = open_store(Path(sys.argv[1]))
        with opened.flights.flight("a" * 64) as turn:
            assert turn.owned
            child = os.fork()
            if child == 0:
                time.sleep(60)
            print(child, flush=True)
            time.sleep(60)
    """
    owner = run_python(code, tmp_path)
    child = int(owner.stdout.readline())
    try:
        assert RangeLocks(path, Files()).try_acquire(A) is None
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        os.kill(child, 0)
        # The child lets go when it first runs, which may be after the owner's end.
        with Flights(RangeLocks(path, Files())).flight(A, timeout=20) as turn:
            assert turn.owned
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_lock_file_is_private_so_that_others_cannot_hold_locks(tmp_path):
    RangeLocks(tmp_path / "flights.lock", Files()).try_acquire(A).release()
    assert (tmp_path / "flights.lock").stat().st_mode & 0o777 == 0o600


def test_what_a_process_has_in_use_cannot_be_excluded_until_it_closes(tmp_path):
    leases = RangeLeases(tmp_path / "leases.lock", Files())
    other = RangeLeases(tmp_path / "leases.lock", Files())
    leases.take(A)
    assert leases.try_exclude(A) is None
    assert other.try_exclude(A) is None
    other.try_exclude(B).release()
    leases.close()
    held = other.try_exclude(A)
    assert held is not None
    held.release()


def test_several_processes_can_have_one_thing_in_use(tmp_path):
    path = tmp_path / "leases.lock"
    first, second, other = (RangeLeases(path, Files()) for _ in range(3))
    first.take(A)
    second.take(A)
    first.close()
    assert other.try_exclude(A) is None
    second.close()
    assert other.try_exclude(A) is not None


def test_what_a_killed_process_had_in_use_is_free(tmp_path):
    path = tmp_path / "leases.lock"
    owner = run_python(HOLD, "leases", path, A)
    assert owner.stdout.readline() == "held\n"
    assert RangeLeases(path, Files()).try_exclude(A) is None
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert RangeLeases(path, Files()).try_exclude(A) is not None


def test_thousands_of_leases_need_one_descriptor(tmp_path):
    leases = RangeLeases(tmp_path / "leases.lock", Files())
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(2000):
        leases.take(f"{number:064x}"[::-1])
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    leases.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_stuck_evictor_delays_a_reader_but_does_not_stop_it(tmp_path, monkeypatch):
    monkeypatch.setattr("torch_piecewise.store.locks._SHARE_SECONDS", 0.05)
    evictor = RangeLeases(tmp_path / "leases.lock", Files())
    held = evictor.try_exclude(A)
    reader = RangeLeases(tmp_path / "leases.lock", Files())
    reader.take(A)
    held.release()
    assert evictor.try_exclude(A) is not None


def test_taking_a_lease_where_nothing_can_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    RangeLeases(tmp_path / "file" / "leases.lock", Files()).take(A)


def test_without_leases_everything_can_be_excluded():
    leases = NoLeases()
    leases.take(A)
    assert not leases.work
    assert leases.try_exclude(A) is not None


def test_byte_locks_are_used_only_where_they_work(tmp_path, monkeypatch):
    assert range_locks_work(tmp_path / "flights.lock", Files())

    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("fcntl.fcntl", refuse)
    assert not range_locks_work(tmp_path / "flights.lock", Files())
