"""Opens a root: makes it where it is missing, judges who can write to it, chooses locks that work there."""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from torch_piecewise.errors import UntrustedError
from torch_piecewise.store.base import Draft, Entry, Found, Miss, Namespace, Store
from torch_piecewise.store.disk import DiskStore
from torch_piecewise.store.eviction import Housekeeper, LimitedStore
from torch_piecewise.store.files import Files, mapped_errors
from torch_piecewise.store.layout import Layout
from torch_piecewise.store.locks import (
    FileLocks,
    Leases,
    Locks,
    NoLeases,
    RangeLeases,
    RangeLocks,
    range_locks_work,
)
from torch_piecewise.store.single_flight import Flights, Outcome, get_or_make
from torch_piecewise.store.trust import Trust, trust_of_this_process
from torch_piecewise.store.wrappers import DegradingStore, NullStore, OneWarning, logger

T = TypeVar("T")

LIMIT_BYTES = 20 * 1024**3
"""Size limit of a root where none is given."""

_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# Compiled programs of torch-piecewise, kept.\n"


@dataclass(frozen=True)
class OpenStore:
    """A store with what belongs to it.

    Attributes:
        store: never fails for reasons of the disk (see ``DegradingStore``).
        flights: single flight over the same root.
        disk: the root itself, for clean-up and inspection; None where there is none.
        housekeeper: cleans it; None where there is none.
    """

    store: Store
    flights: Flights
    disk: DiskStore | None = None
    housekeeper: Housekeeper | None = None
    limit_bytes: int | None = None
    complain: Callable[[str], None] | None = None

    def in_namespace(self, namespace: Namespace) -> OpenStore:
        """The same root for another tag or rank, with the same locks and the same one warning."""
        if self.disk is None:
            return self
        disk = self.disk.in_namespace(namespace)
        return replace(self, disk=disk, store=_front(disk, self.housekeeper, self.limit_bytes, self.complain))

    def get_or_make(
        self,
        key: str,
        *,
        load: Callable[[Entry], Found[T]],
        make: Callable[[Miss], tuple[T, Draft | None]],
        timeout: float | None = None,
        on_wait: Callable[[float], None] | None = None,
    ) -> Outcome[T]:
        """See :func:`~torch_piecewise.store.single_flight.get_or_make`."""
        return get_or_make(
            self.store, self.flights, key, load=load, make=make, timeout=timeout, on_wait=on_wait
        )

    def close(self) -> None:
        """Say that nothing of it is in use any more; it can go on being used, and counts as in use then."""
        if self.disk is not None:
            self.disk.leases.close()


def open_store(
    root: Path,
    *,
    namespace: Namespace = Namespace(),  # noqa: B008  (frozen)
    limit_bytes: int | None = LIMIT_BYTES,
    trust: Trust | None = None,
    files: Files | None = None,
    warn: Callable[[str], None] = logger.warning,
) -> OpenStore:
    """Open ``root``, making it where it is missing.

    Args:
        root: an absolute path; see :func:`~torch_piecewise.store.root.cache_root`.
        limit_bytes: size of the whole root at which the least recently used entries go; None: no limit.
        trust: who may have written to it; None: this user and root.
        files: file operations; None: the real ones.
        warn: gets the one warning, when the root cannot be made, read or written to.

    Raises:
        UntrustedError: others own the root or can write to it; names the command that mends it.
    """
    files, trust, layout = files or Files(), trust or trust_of_this_process(), Layout(root)
    complain = OneWarning(warn)
    try:
        with mapped_errors("making it", root):
            _prepare(layout, files, trust)
    except UntrustedError:
        raise
    except OSError as error:
        complain(f"{error}\n  The model runs; what it compiles is not kept.")
        return OpenStore(NullStore(f"the cache at {root} cannot be used"), Flights(None))
    locks, leases = _locks(layout, files)
    disk = DiskStore(layout, namespace, files, leases, trust)
    housekeeper = Housekeeper(layout, files, leases, locks)
    flights = Flights(locks)
    _forget_in_children(flights)
    store = _front(disk, housekeeper, limit_bytes, complain)
    return OpenStore(store, flights, disk, housekeeper, limit_bytes, complain)


def _prepare(layout: Layout, files: Files, trust: Trust) -> None:
    if not layout.root.is_dir():
        files.make_folder(layout.root)
    if not layout.root.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(layout.root))
    trust.check(layout.root, layout.root.stat())
    # What follows is a convenience; a root that cannot be written to is still read.
    with contextlib.suppress(OSError):
        if not layout.tag.exists():
            files.publish(layout.tag, _TAG)
        if not layout.leases.exists():
            os.close(os.open(layout.leases, os.O_RDWR | os.O_CREAT, 0o644))


def _locks(layout: Layout, files: Files) -> tuple[Locks, Leases]:
    if range_locks_work(layout.flights, files):
        return RangeLocks(layout.flights, files), RangeLeases(layout.leases, files)
    return FileLocks(layout.lock_files, files), NoLeases()


def _front(
    disk: DiskStore,
    housekeeper: Housekeeper | None,
    limit_bytes: int | None,
    complain: Callable[[str], None] | None,
) -> Store:
    inner: Store = disk
    if housekeeper is not None and limit_bytes is not None:
        inner = LimitedStore(disk, disk.blobs, housekeeper, limit_bytes)
    return DegradingStore(inner, complain or logger.warning)


def _forget_in_children(flights: Flights) -> None:
    """A child made by ``fork`` shares its parent's open files, so a lock would outlive a parent that died."""
    if not hasattr(os, "register_at_fork"):
        return
    known = weakref.ref(flights)

    def forget() -> None:
        if (alive := known()) is not None:
            alive.close_in_child()

    os.register_at_fork(after_in_child=forget)
