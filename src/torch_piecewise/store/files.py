"""The few file operations of the store, in one place: where faults are injected and foreign errors mapped."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from torch_piecewise.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMP_SUFFIX = ".tmp"
_READ_LIMIT = 1 << 34
_ATTEMPTS = 3


class NotAFile(OSError):
    """A folder, a FIFO or the like is where a file should be."""


def no_step(name: str) -> None:
    """The default of ``at_step``: nothing happens at a step."""


class Files:
    """Reads and publishes whole files.

    Args:
        durable: flush files and folders to the device, so that a power cut loses no published file.
        at_step: called with the name of each step of :meth:`publish` and of ``DiskStore.put`` once that step
            is done; tests stop or fail there.
    """

    def __init__(self, *, durable: bool = True, at_step: Callable[[str], None] = no_step) -> None:
        self._durable = durable
        self.at_step = at_step

    def read(self, path: Path) -> tuple[bytes, os.stat_result]:
        """All bytes of a regular file, and its status.

        Raises:
            NotAFile: it is something else.
            OSError: as the system says.
        """
        # Without O_NONBLOCK a FIFO in the place of a file would stop the process for ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _READ_LIMIT:
                raise NotAFile(errno.EINVAL, "not a regular file of a possible size", str(path))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(), status
        finally:
            os.close(descriptor)

    def publish(self, path: Path, data: bytes) -> None:
        """Make ``path`` hold ``data``; at every moment others see the old file, or the new one, whole.

        Raises:
            OSError: as the system says; nothing is left behind then.
        """
        for _ in range(_ATTEMPTS - 1):
            # A clean-up may remove an empty folder between its making and the file in it.
            with contextlib.suppress(FileNotFoundError):
                self._publish_once(path, data)
                return
        self._publish_once(path, data)

    def _publish_once(self, path: Path, data: bytes) -> None:
        self.make_folder(path.parent)
        temp = path.parent / f".{path.name[:40]}.{uuid.uuid4().hex}{TEMP_SUFFIX}"
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
        try:
            try:
                mark_as_alive(descriptor)
                self.at_step("temp-created")
                self.write(descriptor, data)
                self.at_step("temp-written")
                self._flush(descriptor)
                self.at_step("temp-flushed")
                temp.replace(path)
            finally:
                os.close(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                temp.unlink()
            raise
        self.at_step("renamed")
        self._flush_folder(path.parent)
        self.at_step("folder-flushed")

    def holds(self, path: Path, data: bytes) -> bool:
        """Whether ``path`` is a file that holds exactly ``data``."""
        try:
            there, _ = self.read(path)
        except OSError:
            return False
        return there == data

    def write(self, descriptor: int, data: bytes) -> None:
        """All of ``data`` to an open file."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def make_folder(self, path: Path) -> None:
        """Make ``path`` and its parents where they are missing; never writable by group or others.

        The mode is given, not left to the umask alone: with umask 002 the store would refuse its own folders.
        """
        if path.is_dir():
            return
        self.make_folder(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(0o755)

    def remove(self, path: Path) -> bool:
        """Remove a file; whether it was there and could be removed."""
        try:
            path.unlink()
        except OSError:
            return False
        return True

    def move(self, source: Path, target: Path) -> bool:
        """Rename within the root; whether that worked (not on a read-only one)."""
        try:
            self.make_folder(target.parent)
            source.replace(target)
        except OSError:
            return False
        return True

    def set_aside(self, path: Path, seen: os.stat_result | None, target: Path) -> bool:
        """Move a damaged file out of the way, to a fresh name beginning with ``target``.

        Args:
            seen: its status when it was read; the file stays if it changed since, as somebody mended it.
                None for what is no file at all.
        """
        with contextlib.suppress(OSError):
            now = path.stat()
            if seen is None or (now.st_ino, now.st_mtime_ns) == (seen.st_ino, seen.st_mtime_ns):
                return self.move(path, target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}"))
        return False

    def touch(self, path: Path) -> None:
        """Say that ``path`` was used now. On a read-only root nothing happens: eviction cannot either."""
        with contextlib.suppress(OSError):
            os.utime(path)

    def _flush(self, descriptor: int) -> None:
        if self._durable:
            os.fsync(descriptor)

    def _flush_folder(self, path: Path) -> None:
        if not self._durable or os.name == "nt":
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            # Some network file systems cannot flush a folder, and need not.
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def mark_as_alive(descriptor: int) -> None:
    """Lock a temp file while its writer lives, so that a clean-up can tell it from one left by a crash."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_abandoned(temp: Path) -> bool:
    """Whether the writer of a temp file is gone. False where locks do not work."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(temp, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


_MENDS = {
    errno.ENOSPC: "free some space (torch-piecewise cache prune --limit SIZE)",
    errno.EDQUOT: "free some of your quota (torch-piecewise cache prune --limit SIZE)",
    errno.ENOTDIR: "a file is in the place of a folder: remove or rename it",
    errno.EROFS: "mount it writable once to fill it; a filled one is read as it is",
    errno.EACCES: "make it yours: chown -R $(id -u) and chmod -R u+rwX",
    errno.EPERM: "make it yours: chown -R $(id -u) and chmod -R u+rwX",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files",
}


def store_error(error: OSError, doing: str, root: Path) -> StoreError:
    """The system's ``error`` while ``doing`` something at ``root``, in our words, with how to mend it."""
    mend = _MENDS.get(error.errno or 0, "look at the folder and its file system")
    mapped = StoreError(
        f"The cache at {root} failed while {doing}",
        got=f"{type(error).__name__}: {error.strerror or error}",
        hint=f"{mend}; or set TORCH_PIECEWISE_CACHE_DIR to another folder",
    )
    mapped.errno = error.errno
    return mapped


@contextlib.contextmanager
def mapped_errors(doing: str, root: Path) -> Iterator[None]:
    """Turn the system's errors in the block into :class:`StoreError`; our own pass unchanged."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise store_error(error, doing, root) from error
