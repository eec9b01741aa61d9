"""What was made once is kept whole, and made again when it is not."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from torch_piecewise.demo.base import DemoError
from torch_piecewise.demo.kept import is_whole, kept_folder, key_of


class Maker:
    """Copies the source into two files and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, source: Path, folder: Path) -> None:
        self.calls += 1
        (folder / "a.bin").write_bytes(source.read_bytes())
        (folder / "b.bin").write_bytes(b"second")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "root"


def test_it_is_made_once_and_then_found(source: Path, root: Path) -> None:
    maker = Maker()
    first = kept_folder(source, root, maker)
    assert kept_folder(source, root, maker) == first
    assert maker.calls == 1
    assert (first / "a.bin").read_bytes() == b"weights"


def test_nothing_but_the_folder_and_its_lock_is_left(source: Path, root: Path) -> None:
    made = kept_folder(source, root, Maker())
    assert [entry.name for entry in root.iterdir() if not entry.name.endswith(".lock")] == [made.name]


def test_a_source_with_other_bytes_gets_a_folder_of_its_own(source: Path, root: Path) -> None:
    first = kept_folder(source, root, Maker())
    source.write_bytes(b"weightz")
    second = kept_folder(source, root, Maker())
    assert first != second
    assert (second / "a.bin").read_bytes() == b"weightz"


def test_the_key_names_file_size_and_digest(source: Path) -> None:
    assert key_of(source).startswith("model-7-")
    assert len(key_of(source)) == len("model-7-") + 16


def truncate(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"wei")


def remove_a_file(folder: Path) -> None:
    (folder / "b.bin").unlink()


def remove_the_manifest(folder: Path) -> None:
    (folder / "kept.json").unlink()


def empty_the_manifest(folder: Path) -> None:
    (folder / "kept.json").write_bytes(b"")


def list_in_the_manifest(folder: Path) -> None:
    (folder / "kept.json").write_text("[1]", "utf-8")


def bytes_in_the_manifest(folder: Path) -> None:
    (folder / "kept.json").write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    "harm",
    [
        truncate,
        remove_a_file,
        remove_the_manifest,
        empty_the_manifest,
        list_in_the_manifest,
        bytes_in_the_manifest,
    ],
)
def test_a_torn_folder_is_noticed_and_made_again(
    source: Path, root: Path, harm: Callable[[Path], None]
) -> None:
    maker = Maker()
    made = kept_folder(source, root, maker)
    harm(made)
    assert not is_whole(made)
    assert kept_folder(source, root, maker) == made
    assert maker.calls == 2
    assert is_whole(made)
    assert (made / "a.bin").read_bytes() == b"weights"


def test_a_failure_while_making_leaves_nothing_behind(source: Path, root: Path) -> None:
    def broken(source: Path, folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        kept_folder(source, root, broken)
    assert [entry.name for entry in root.iterdir() if not entry.name.endswith(".lock")] == []
    assert is_whole(kept_folder(source, root, Maker()))


def test_what_a_killed_process_left_half_made_is_not_taken_for_it(source: Path, root: Path) -> None:
    half = root / ".making-killed" / key_of(source)
    half.mkdir(parents=True)
    (half / "a.bin").write_bytes(b"wei")
    assert (kept_folder(source, root, Maker()) / "a.bin").read_bytes() == b"weights"


def test_callers_at_the_same_time_make_it_once(source: Path, root: Path) -> None:
    maker = Maker()
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: kept_folder(source, root, maker), range(4)))
    assert len(folders) == 1
    assert maker.calls == 1


def test_making_nothing_is_an_error(source: Path, root: Path) -> None:
    with pytest.raises(DemoError, match="Nothing was made"):
        kept_folder(source, root, lambda source, folder: None)


def test_a_root_that_cannot_be_a_folder_is_an_error_that_says_so(source: Path) -> None:
    with pytest.raises(DemoError, match=r"made from model\.gguf cannot be kept") as caught:
        kept_folder(source, source / "root", Maker())
    assert "XDG_CACHE_HOME" in str(caught.value)


def test_a_full_disk_is_an_error_that_says_so_and_leaves_nothing(source: Path, root: Path) -> None:
    def full(source: Path, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DemoError, match="No space left"):
        kept_folder(source, root, full)
    assert not [entry for entry in root.iterdir() if not entry.name.endswith(".lock")]


def test_a_root_that_is_read_only_but_holds_the_folder_is_fine(source: Path, root: Path) -> None:
    made = kept_folder(source, root, Maker())
    root.chmod(0o500)
    try:
        assert kept_folder(source, root, Maker()) == made
    finally:
        root.chmod(0o700)
