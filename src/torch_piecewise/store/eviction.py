"""Keeps a root small and tidy, and never removes what a running process has in use.

Removed are: what crashes left (temp files whose writer is gone, folders without a manifest, blobs that
nothing names), what was set aside as damaged, and beyond a size limit the least recently used entries. An
entry was last used when ``get`` or ``put`` last touched its manifest; the file system's access times do not
count.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch_piecewise.errors import StoreError
from torch_piecewise.store.base import BlobRef, Draft, Entry, Found, Store, digest_of
from torch_piecewise.store.blobs import DiskBlobs
from torch_piecewise.store.files import Files, mapped_errors
from torch_piecewise.store.layout import Layout
from torch_piecewise.store.locks import Leases, Locks
from torch_piecewise.store.sweep import PruneReport, Sweep

logger = logging.getLogger("torch_piecewise.store")

GRACE_SECONDS = 60.0
"""What is younger is never removed: a put that is under way has written it, and will name it."""

GRACE_SECONDS_WITHOUT_LEASES = 3600.0
"""The same where nothing can tell what is in use."""

_LOW_WATER = 0.9
_REGROWTH = 0.05
_PRUNE_LOCK = digest_of(b"prune")


@dataclass(frozen=True)
class Housekeeper:
    """Cleans one root, all namespaces of it.

    Attributes:
        locks: keep two clean-ups apart; None where locks do not work.
        clock: seconds since the epoch.
    """

    layout: Layout
    files: Files
    leases: Leases
    locks: Locks | None
    clock: Callable[[], float] = time.time

    def size(self) -> int:
        """Bytes of all files of the root."""
        return sum(status.st_size for status in _statuses(self.layout.root))

    def prune(
        self,
        *,
        limit_bytes: int | None = None,
        unused_seconds: float | None = None,
        grace_seconds: float = GRACE_SECONDS,
        dry_run: bool = False,
    ) -> PruneReport:
        """Remove leftovers, and entries beyond the limits.

        Args:
            limit_bytes: evict the least recently used entries until the root is this small; None: no limit.
            unused_seconds: evict entries that nobody used for this long; None: however long.
            grace_seconds: leave alone what is younger.
            dry_run: count what would go, and remove nothing.

        Raises:
            StoreError: the root cannot be written to.
        """
        if not self.leases.work:
            grace_seconds = max(grace_seconds, GRACE_SECONDS_WITHOUT_LEASES)
        with mapped_errors("cleaning up", self.layout.root), self._alone() as alone:
            if not alone:
                return PruneReport(busy=True, size_bytes=self.size())
            sweep = Sweep(self.layout, self.files, self.leases, self.clock(), grace_seconds, dry_run)
            sweep.leftovers()
            sweep.orphans()
            sweep.evict(size=self.size(), limit_bytes=limit_bytes, unused_seconds=unused_seconds)
            sweep.empty_folders()
            return sweep.report(self.size())

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        held = self.locks.try_acquire(_PRUNE_LOCK) if self.locks is not None else None
        try:
            yield held is not None or self.locks is None
        finally:
            if held is not None:
                held.release()


def _statuses(root: Path) -> Iterator[os.stat_result]:
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):
                status = (Path(folder) / name).lstat()
                if stat.S_ISREG(status.st_mode):
                    yield status


class LimitedStore:
    """Puts into ``inner`` and evicts when its root outgrows the limit.

    Args:
        limit_bytes: what the root may hold. It is passed by what one put adds, and by what is in use.
    """

    def __init__(self, inner: Store, blobs: DiskBlobs, housekeeper: Housekeeper, limit_bytes: int) -> None:
        self._inner = inner
        self._blobs = blobs
        self._housekeeper = housekeeper
        self._limit = limit_bytes
        self._size: int | None = None
        self._next_at = limit_bytes
        self._guard = threading.Lock()

    @property
    def blobs(self) -> DiskBlobs:
        """The bytes that the entries name."""
        return self._blobs

    def get(self, key: str) -> Found[Entry]:
        return self._inner.get(key)

    def put(self, key: str, draft: Draft) -> None:
        self._inner.put(key, draft)
        with self._guard:
            self._grow(sum(len(data) for data in draft.blobs.values() if not isinstance(data, BlobRef)))

    def entries(self) -> Iterator[Entry]:
        yield from self._inner.entries()

    def _grow(self, added: int) -> None:
        # The root is measured once; from then on this process counts what it adds itself.
        self._size = self._housekeeper.size() if self._size is None else self._size + added
        if self._size <= self._next_at:
            return
        try:
            report = self._housekeeper.prune(limit_bytes=int(self._limit * _LOW_WATER))
        except StoreError as error:
            logger.debug("the cache could not be cleaned up: %s", error)
            return
        self._size = report.size_bytes
        # What is in use stays even above the limit; it is not tried again for every put.
        self._next_at = max(self._limit, int(self._size + self._limit * _REGROWTH))
