"""One clean-up of a root: what goes, what stays, and the count of both."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch_piecewise.store.base import BlobRef, Miss
from torch_piecewise.store.files import TEMP_SUFFIX, Files, is_abandoned
from torch_piecewise.store.layout import EntryPlace, Layout
from torch_piecewise.store.locks import Leases
from torch_piecewise.store.manifest import FILE_NAME, decode, digests_named_in, is_torn

_TEMP_NAME = re.compile(rf"\..*\.[0-9a-f]{{32}}{re.escape(TEMP_SUFFIX)}")
_TEMP_SECONDS = 2.0
_TEMP_SECONDS_BY_AGE = 24 * 3600.0


@dataclass(frozen=True)
class PruneReport:
    """What a clean-up did, or with ``dry_run`` would do.

    Attributes:
        entries, blobs, temps, leftovers, quarantined: files and entries removed, by kind.
        freed_bytes: their size.
        in_use: what had to go but is used by a running process.
        size_bytes: size of the root afterwards.
        busy: another process was cleaning up, so nothing was done.
    """

    entries: int = 0
    blobs: int = 0
    temps: int = 0
    leftovers: int = 0
    quarantined: int = 0
    freed_bytes: int = 0
    in_use: int = 0
    size_bytes: int = 0
    busy: bool = False


@dataclass(frozen=True)
class _Known:
    """An entry as the sweep sees it, of whatever format its manifest is; torn ones nobody can ever read."""

    place: EntryPlace
    used_at: float
    digests: frozenset[str]
    is_torn: bool = False


class Sweep:
    """See the module.

    Args:
        now: seconds since the epoch.
        grace_seconds: what is younger stays.
        dry_run: count only.
    """

    def __init__(
        self, layout: Layout, files: Files, leases: Leases, now: float, grace_seconds: float, dry_run: bool
    ) -> None:
        self._layout = layout
        self._files = files
        self._leases = leases
        self._now = now
        self._grace = grace_seconds
        self._dry_run = dry_run
        self._count: Counter[str] = Counter()
        self._blobs = dict(layout.blob_files())
        self._entries = self._known_entries()
        self._names = Counter(digest for entry in self._entries for digest in entry.digests)

    def report(self, size: int) -> PruneReport:
        """What was done so far; ``size`` is that of the root now."""
        count = self._count
        return PruneReport(
            entries=count["entries"],
            blobs=count["blobs"],
            temps=count["temps"],
            leftovers=count["leftovers"],
            quarantined=count["quarantined"],
            freed_bytes=count["freed_bytes"],
            in_use=count["in_use"],
            size_bytes=size,
        )

    def leftovers(self) -> None:
        """Remove what crashes left, what was set aside, and locks of the dead."""
        for folder in (self._layout.root, self._layout.blobs, self._layout.entries):
            for path in _files_below(folder, deep=folder != self._layout.root):
                if _TEMP_NAME.fullmatch(path.name):
                    self._remove_temp(path)
        for path in _files_below(self._layout.quarantine, deep=True):
            self._remove(path, "quarantined")
        for path in _files_below(self._layout.lock_files, deep=False):
            if self._is_old(path, self._grace) and is_abandoned(path):
                self._remove(path, "leftovers")
        for entry in list(self._entries):
            if entry.is_torn:
                self._remove_torn(entry)
        for place in list(self._layout.entry_places()):
            self._remove_strays(place)

    def orphans(self) -> None:
        """Remove blobs that no manifest names."""
        for digest in [digest for digest in self._blobs if self._names[digest] <= 0]:
            self._remove_blob(digest)

    def evict(self, *, size: int, limit_bytes: int | None, unused_seconds: float | None) -> None:
        """Remove entries, the least recently used first, and the blobs that nothing names any more."""
        if self._dry_run:
            size -= self._count["freed_bytes"]
        for entry in sorted(self._entries, key=lambda entry: entry.used_at):
            too_old = unused_seconds is not None and self._now - entry.used_at > unused_seconds
            too_much = limit_bytes is not None and size > limit_bytes
            if too_old or too_much:
                size -= self._evict(entry)

    def empty_folders(self) -> None:
        """Remove folders that hold nothing."""
        layout = self._layout
        for top in (layout.blobs, layout.entries, layout.quarantine, layout.lock_files):
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    if not self._dry_run:
                        Path(folder).rmdir()

    def _known_entries(self) -> list[_Known]:
        known = []
        for place in self._layout.entry_places():
            with contextlib.suppress(OSError):
                data, status = self._files.read(place.manifest)
                digests = frozenset(digests_named_in(data))
                known.append(_Known(place, status.st_mtime, digests, is_torn(data)))
        return known

    def _evict(self, entry: _Known) -> int:
        """Bytes freed; 0 if the entry is in use or too young."""
        before = self._count["freed_bytes"]
        if self._now - entry.used_at < self._grace:
            return 0
        held = self._leases.try_exclude(entry.place.key)
        if held is None:
            self._count["in_use"] += 1
            return 0
        try:
            if self._used_since(entry):
                return 0
            # The manifest first: from then on nobody can be given a part of the entry.
            self._remove(entry.place.manifest, "entries")
            for path in _files_below(entry.place.folder, deep=False):
                if path.name != FILE_NAME:
                    self._remove(path, "companions")
        finally:
            held.release()
        self._names.subtract(entry.digests)
        for digest in entry.digests:
            if digest in self._blobs and self._names[digest] <= 0:
                self._remove_blob(digest)
        return self._count["freed_bytes"] - before

    def _used_since(self, entry: _Known) -> bool:
        try:
            return entry.place.manifest.stat().st_mtime != entry.used_at
        except OSError:
            return True

    def _remove_blob(self, digest: str) -> None:
        path = self._blobs[digest]
        held = self._leases.try_exclude(digest)
        if held is None:
            self._count["in_use"] += 1
            return
        try:
            if self._is_old(path, self._grace):
                self._remove(path, "blobs")
        finally:
            held.release()

    def _remove_temp(self, path: Path) -> None:
        by_lock = self._is_old(path, min(self._grace, _TEMP_SECONDS)) and is_abandoned(path)
        by_age = self._is_old(path, max(self._grace, _TEMP_SECONDS_BY_AGE))
        if by_lock or by_age:
            self._remove(path, "temps")

    def _remove_torn(self, entry: _Known) -> None:
        """A manifest that nobody can read; what it alone named goes with the orphans."""
        if not self._is_old(entry.place.manifest, self._grace):
            return
        held = self._leases.try_exclude(entry.place.key)
        if held is None:
            self._count["in_use"] += 1
            return
        self._remove(entry.place.manifest, "leftovers")
        held.release()
        self._entries.remove(entry)
        self._names.subtract(entry.digests)

    def _remove_strays(self, place: EntryPlace) -> None:
        """Companions that are not the manifest's, by name or by content; without a manifest, all."""
        named: Mapping[str, BlobRef] = {}
        with contextlib.suppress(FileNotFoundError):
            found = decode(place.manifest.read_bytes(), key=place.key, namespace=place.namespace)
            if isinstance(found, Miss):
                return
            named = found.value.companions
        strays = [
            path
            for path in _files_below(place.folder, deep=False)
            if path.name != FILE_NAME
            and not _TEMP_NAME.fullmatch(path.name)
            and self._is_old(path, self._grace)
            and BlobRef.of(path.read_bytes()) != named.get(path.name)
        ]
        held = self._leases.try_exclude(place.key) if strays else None
        if held is None:
            return
        for path in strays:
            self._remove(path, "leftovers")
        held.release()

    def _is_old(self, path: Path, seconds: float) -> bool:
        try:
            return self._now - path.lstat().st_mtime >= seconds
        except OSError:
            return False

    def _remove(self, path: Path, kind: str) -> None:
        try:
            size = path.lstat().st_size
        except OSError:
            return
        if self._dry_run or self._files.remove(path):
            self._count["freed_bytes"] += size
            self._count[kind] += 1


def _files_below(folder: Path, *, deep: bool) -> list[Path]:
    found = []
    for parent, _, names in os.walk(folder):
        found += [Path(parent) / name for name in names]
        if not deep:
            break
    with_status = []
    for path in found:
        with contextlib.suppress(OSError):
            if not stat.S_ISDIR(path.lstat().st_mode):
                with_status.append(path)
    return with_status
