"""Opening roots that are well, not there, read-only, full, or another's; by real users and file systems."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from torch_piecewise.store import Hit, Miss, open_store
from torch_piecewise.store.files import Files
from torch_piecewise.store.locks import FileLocks, NoLeases

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
NOBODY = 65534
SOURCES = Path(sys.modules["torch_piecewise"].__file__).parent.parent

REPORT = """
    import grp, json, os, pwd, sys
    from pathlib import Path
    from torch_piecewise.errors import UntrustedError
    from torch_piecewise.store import Draft, Hit, open_store
    warnings = []
    told = {}
    if int(sys.argv[3]):
        # After the imports, as the new user may not be allowed to read the code.
        os.setgroups([])
        os.setgid(int(sys.argv[3]))
        os.setuid(int(sys.argv[3]))
    try:
        opened = open_store(Path(sys.argv[1]), warn=warnings.append)
        told["a"] = isinstance(opened.store.get("a" * 64), Hit)
        with opened.flights.flight("b" * 64) as turn:
            told["owned"] = turn.owned
            opened.store.put("b" * 64, Draft([], {"x": b"b" * int(sys.argv[2])}))
        opened.store.put("c" * 64, Draft([], {"x": b"c"}))
        told["b"] = isinstance(opened.store.get("b" * 64), Hit)
        if told["a"]:
            found = opened.store.blobs.file(opened.store.get("a" * 64).value.blobs["artifact"])
            told["file"] = isinstance(found, Hit)
    except UntrustedError as error:
        told["refused"] = str(error)
    told["warnings"] = warnings
    print(json.dumps(told))
"""


def reported(root: Path, *, size: int = 10, user: int = 0, before: tuple[str, ...] = ()):
    """What a process of its own finds at ``root``, as that user (0: as this one)."""
    done = subprocess.run(
        [*before, sys.executable, "-c", textwrap.dedent(REPORT), str(root), str(size), str(user)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SOURCES), "PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def can_mount() -> bool:
    if not IS_ROOT or shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


as_nobody = pytest.mark.skipif(not IS_ROOT, reason="needs root, to become another user")
with_mounts = pytest.mark.skipif(not can_mount(), reason="needs the right to mount")


@pytest.fixture
def open_place():
    """A folder that other users can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="torch-piecewise-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def filled(open_place, draft):
    root = open_place / "cache"
    open_store(root, files=Files(durable=False)).store.put("a" * 64, draft("a"))
    return root


def test_a_root_that_is_well_gives_no_warning(filled):
    assert reported(filled) == {"a": True, "owned": True, "b": True, "file": True, "warnings": []}


def test_a_root_is_made_with_its_parents(tmp_path, key, draft):
    opened = open_store(tmp_path / "x" / "y" / "cache")
    opened.store.put(key("a"), draft("a"))
    assert isinstance(opened.store.get(key("a")), Hit)


def test_opening_writes_no_global_state(tmp_path):
    before = dict(os.environ)
    open_store(tmp_path / "cache")
    assert dict(os.environ) == before


def test_a_root_that_cannot_be_made_gives_one_warning_and_a_store_that_misses(tmp_path, key, draft):
    (tmp_path / "file").write_text("")
    warnings: list[str] = []
    opened = open_store(tmp_path / "file" / "cache", warn=warnings.append)
    opened.store.put(key("a"), draft("a"))
    found = opened.store.get(key("a"))
    assert isinstance(found, Miss)
    assert "cannot be used" in found.reason
    assert len(warnings) == 1
    with opened.flights.flight(key("a")) as turn:
        assert not turn.owned


def test_where_byte_locks_do_not_work_files_are_locked_and_nothing_is_leased(
    tmp_path, monkeypatch, key, draft
):
    monkeypatch.setattr("torch_piecewise.store.opening.range_locks_work", lambda *_: False)
    opened = open_store(tmp_path / "cache")
    assert isinstance(opened.disk.leases, NoLeases)
    assert isinstance(opened.housekeeper.locks, FileLocks)
    opened.store.put(key("a"), draft("a"))
    assert isinstance(opened.store.get(key("a")), Hit)
    with opened.flights.flight(key("a")) as turn:
        assert turn.owned


@pytest.mark.parametrize("below", ["", "deep"])
def test_a_root_whose_place_a_file_takes_gives_one_warning_and_keeps_nothing(tmp_path, key, draft, below):
    (tmp_path / "cache").write_text("a file")
    root = tmp_path / "cache" / below
    warnings = []
    opened = open_store(root, warn=warnings.append)
    opened.store.put(key("a"), draft("a"))
    assert isinstance(opened.store.get(key("a")), Miss)
    assert warnings == [
        (
            f"The cache at {root} failed while making it\n"
            "  got: NotADirectoryError: Not a directory\n"
            "  to do: a file is in the place of a folder: remove or rename it; "
            "or set TORCH_PIECEWISE_CACHE_DIR to another folder\n"
            "  The model runs; what it compiles is not kept."
        )
    ]
    assert (tmp_path / "cache").read_text() == "a file"


@as_nobody
def test_a_root_of_roots_that_one_may_only_read_is_read_and_puts_give_one_warning(filled):
    told = reported(filled, user=NOBODY)
    assert (told["a"], told["b"], told["owned"], told["file"]) == (True, False, False, True)
    assert len(told["warnings"]) == 1
    assert "Permission denied" in told["warnings"][0]
    assert "chown" in told["warnings"][0]


@as_nobody
def test_a_root_that_one_may_not_even_read_gives_one_warning(filled):
    filled.chmod(0o700)
    told = reported(filled, user=NOBODY)
    assert (told["a"], told["b"]) == (False, False)
    assert len(told["warnings"]) == 1
    assert "Permission denied" in told["warnings"][0]


@as_nobody
def test_a_parent_folder_that_one_may_not_write_to_gives_one_warning(open_place):
    told = reported(open_place / "new", user=NOBODY)
    assert (told["a"], told["b"]) == (False, False)
    assert len(told["warnings"]) == 1
    assert "TORCH_PIECEWISE_CACHE_DIR" in told["warnings"][0]


@as_nobody
def test_a_root_of_another_user_is_refused_with_the_mend(filled):
    for path in [filled, *filled.rglob("*")]:
        os.chown(path, 65533, 65533)
    told = reported(filled, user=NOBODY)
    assert f"chown -R {NOBODY} {filled}" in told["refused"]


@as_nobody
def test_a_user_does_not_trust_what_every_user_can_write_to(filled):
    filled.chmod(0o1777)
    assert f"chmod -R go-w {filled}" in reported(filled, user=NOBODY)["refused"]


@with_mounts
def test_on_a_full_disk_the_store_warns_once_and_keeps_what_it_has(filled):
    mount = f"mount -t tmpfs -o size=300k none {filled.parent}/mnt"
    script = f'{mount} && cp -a {filled} {filled.parent}/mnt/ && exec "$@"'
    (filled.parent / "mnt").mkdir()
    before = ("unshare", "--mount", "sh", "-c", script, "sh")
    told = reported(filled.parent / "mnt" / "cache", size=1_000_000, before=before)
    assert (told["a"], told["b"], told["file"]) == (True, False, True)
    assert len(told["warnings"]) == 1
    assert "No space left on device" in told["warnings"][0]
    assert "prune" in told["warnings"][0]


@with_mounts
def test_a_read_only_mount_hits_and_nothing_is_locked_or_written(filled):
    script = f'mount --bind {filled} {filled} && mount -o remount,bind,ro {filled} && exec "$@"'
    told = reported(filled, before=("unshare", "--mount", "sh", "-c", script, "sh"))
    assert (told["a"], told["b"], told["owned"], told["file"]) == (True, False, False, True)
    assert len(told["warnings"]) == 1
    assert "Read-only file system" in told["warnings"][0]
