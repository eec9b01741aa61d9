"""Locks between processes and threads that end with their owner, one per key, without a file per key.

On Linux a lock is one byte of one file, at an offset taken from the key, held through the open file
(``F_OFD_SETLK``): two opens exclude each other even within a process, the kernel lets go when the owner dies,
nothing needs cleaning up, and thousands of keys cost one descriptor. Elsewhere, and where a file system
does not know such locks, exclusive locks fall back to one ``filelock`` file per key, and shared ones to
nothing (the age of an entry protects it then).
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch_piecewise.store.files import Files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from filelock import BaseFileLock

_BUSY = frozenset({errno.EAGAIN, errno.EACCES})
_SHARE_SECONDS = 1.0


class Held(Protocol):
    """A lock that is held."""

    def release(self) -> None:
        """Let go; a second time does nothing."""
        ...


class Locks(Protocol):
    """Exclusive locks by key."""

    def try_acquire(self, key: str) -> Held | None:
        """The lock on ``key``, or None while another process or thread holds it.

        Raises:
            OSError: locks do not work here (read-only root, a file system without them).
        """
        ...

    def close_in_child(self) -> None:
        """After a fork, in the child: give up what the parent holds, which would else outlive the parent."""
        ...


def byte_of(key: str) -> int:
    """The byte of the lock file that stands for ``key`` (hexadecimal digits): 60 bits of it.

    Two keys of one byte only wait for each other needlessly, at odds of one in 10^18.
    """
    return int(key[:15], 16)


def _set_lock(descriptor: int, kind: int, offset: int) -> bool:
    """Set or clear one byte's lock without waiting; False where another open file holds it."""
    # struct flock: short type, short whence, off_t start, off_t length, pid_t 0 (has to be, for these locks).
    request = struct.pack("hhqqi", kind, os.SEEK_SET, offset, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


class _HeldByte:
    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        # Never twice: the number may be another open file's by then.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class RangeLocks:
    """Exclusive locks as bytes of one file.

    Args:
        path: the file; made where it is missing.
        mode: of a file that is made; by default for this user alone, as whoever can read it can hold locks.
    """

    def __init__(self, path: Path, files: Files, *, mode: int = 0o600) -> None:
        self._path = path
        self._files = files
        self._mode = mode
        self._held: weakref.WeakSet[_HeldByte] = weakref.WeakSet()

    def try_acquire(self, key: str) -> Held | None:
        self._files.make_folder(self._path.parent)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, self._mode)
        try:
            taken = _set_lock(descriptor, fcntl.F_WRLCK, byte_of(key))
        except BaseException:
            os.close(descriptor)
            raise
        if not taken:
            os.close(descriptor)
            return None
        held = _HeldByte(descriptor)
        self._held.add(held)
        return held

    def close_in_child(self) -> None:
        for held in list(self._held):
            held.release()


class _HeldFile:
    def __init__(self, lock: BaseFileLock) -> None:
        self._lock = lock

    def release(self) -> None:
        self._lock.release()


class FileLocks:
    """Exclusive locks as one file per key; for systems without :class:`RangeLocks`.

    Args:
        folder: where the files go.
    """

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder = folder
        self._files = files

    def try_acquire(self, key: str) -> Held | None:
        self._files.make_folder(self._folder)
        # Imported here, as it takes a third of the store's import time and is hardly ever needed.
        import filelock

        # Not thread-local: the one who releases may be another thread than the one who waited.
        lock = filelock.FileLock(self._folder / f"{key}.lock", thread_local=False)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return None
        return _HeldFile(lock)

    def close_in_child(self) -> None:
        # filelock closes its own descriptors after a fork.
        return


class Leases(Protocol):
    """Marks on entries and blobs that this process has in use; they end with the process."""

    @property
    def work(self) -> bool:
        """Whether :meth:`try_exclude` can be relied on here."""
        ...

    def take(self, digest: str) -> None:
        """Mark ``digest`` as in use, until :meth:`close`."""
        ...

    def try_exclude(self, digest: str) -> Held | None:
        """Make sure that nobody has ``digest`` in use, nor starts to until release; None if somebody has."""
        ...

    def close(self) -> None:
        """End all marks of this process."""
        ...


class _Nothing:
    def release(self) -> None:
        return


class NoLeases:
    """Where shared locks do not work: nothing is marked, and clean-up goes by age."""

    work = False

    def take(self, digest: str) -> None:
        return

    def try_exclude(self, digest: str) -> Held | None:
        return _Nothing()

    def close(self) -> None:
        return


class RangeLeases:
    """Shared locks on bytes of one file, all through one descriptor; they end with this object.

    Args:
        path: the file; made where it is missing and that is possible. A read-only root may have it.
    """

    work = True

    def __init__(self, path: Path, files: Files) -> None:
        self._path = path
        self._files = files
        self._descriptor: int | None = None
        self._closing: Callable[[], object] = lambda: None
        self._taken: set[str] = set()
        self._guard = threading.Lock()

    def take(self, digest: str) -> None:
        with self._guard:
            if digest in self._taken:
                return
            # A root where this fails (read-only, never prepared) cannot be cleaned up from here either.
            with contextlib.suppress(OSError):
                if self._descriptor is None:
                    self._descriptor = self._open_shared()
                    self._closing = weakref.finalize(self, os.close, self._descriptor)
                if self._share(self._descriptor, digest):
                    self._taken.add(digest)

    def _share(self, descriptor: int, digest: str) -> bool:
        # An evictor holds the byte for the time of one unlink. A stopped one must not stop the reader too.
        deadline = time.monotonic() + _SHARE_SECONDS
        while not _set_lock(descriptor, fcntl.F_RDLCK, byte_of(digest)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def _open_shared(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            self._files.make_folder(self._path.parent)
            return os.open(self._path, os.O_RDONLY | os.O_CREAT, 0o644)

    def try_exclude(self, digest: str) -> Held | None:
        with self._guard:
            if digest in self._taken:
                return None
        # An open file of its own, so that this process's own marks count as well.
        return RangeLocks(self._path, self._files, mode=0o644).try_acquire(digest)

    def close(self) -> None:
        with self._guard:
            self._closing()
            self._descriptor = None
            self._taken = set()


def range_locks_work(path: Path, files: Files) -> bool:
    """Whether byte locks work on the file system of ``path`` (which is made where possible)."""
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return False
    try:
        held = RangeLocks(path, files).try_acquire("f" * 15)
    except OSError as error:
        # No right to write says nothing about locks, and nobody here could take an exclusive one anyway.
        return error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
    if held is not None:
        held.release()
    return True
