"""A folder made once from a source file and kept: published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from torch_piecewise.demo.base import DemoError

_MANIFEST = "kept.json"


def kept_folder(source: Path, root: Path, make: Callable[[Path, Path], None]) -> Path:
    """The folder made from ``source``, made now if it is not there whole.

    Its name holds size and digest of ``source``, so a changed source gets a folder of its own. Other
    processes that want the same folder wait for the one that makes it.

    Args:
        source: the file to make it from.
        root: where to keep it; made if missing.
        make: ``(source, folder)`` fills an empty folder; called at most once.

    Raises:
        DemoError: it cannot be written, or ``make`` left the folder empty.
    """
    final = root / key_of(source)
    if is_whole(final):
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{final.name}.lock"):
            if not is_whole(final):
                _publish(source, final, make)
    except OSError as error:
        raise DemoError(
            f"What is made from {source.name} cannot be kept",
            expected=f"{root} is or can become a folder that can be written, on a disk with room",
            got=str(error),
            hint="make room, or set XDG_CACHE_HOME to another folder",
        ) from error
    return final


def key_of(source: Path) -> str:
    """``name-size-digest`` of a file; the digest is the start of its SHA-256."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{source.stem}-{source.stat().st_size}-{digest[:16]}"


def is_whole(folder: Path) -> bool:
    """Whether the folder holds every file of its manifest, each with the size it was published with.

    Anything unreadable counts as not whole.
    """
    try:
        sizes = json.loads((folder / _MANIFEST).read_text("utf-8"))
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _publish(source: Path, final: Path, make: Callable[[Path, Path], None]) -> None:
    # A sibling, so that the rename stays within one file system and is atomic.
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".making-", ignore_cleanup_errors=True) as made:
        folder = Path(made) / final.name
        folder.mkdir()
        make(source, folder)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        if not sizes:
            raise DemoError(f"Nothing was made from {source.name}", expected="at least one file")
        (folder / _MANIFEST).write_text(json.dumps(sizes, indent=1), "utf-8")
        if final.exists():
            shutil.move(final, Path(made) / "torn")
        folder.rename(final)
