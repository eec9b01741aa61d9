"""Where a manager looks before it compiles: a root's artifacts, its index, and why something was missing."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch_piecewise.artifact import Artifact
from torch_piecewise.artifact_store import ArtifactStore
from torch_piecewise.events import Bus, StoreLookup
from torch_piecewise.manager.index import Index, IndexEntry, read_index, write_index
from torch_piecewise.manager.units import Unit, is_unnamed
from torch_piecewise.ranges import Range
from torch_piecewise.store import Cause, Found, Hit, Miss

MOST = 256
"""Misses that are remembered."""


class Shelf:
    """The artifacts that one manager finds and keeps; closed until :meth:`open`.

    Args:
        bus: gets a :class:`~torch_piecewise.events.StoreLookup` for each look.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._kept: ArtifactStore | None = None
        self._closed = "nothing is kept before initialize_cache"
        self._misses: dict[str, None] = {}
        self._there: set[tuple[str, Range]] = set()
        self.index = Index()

    @property
    def misses(self) -> tuple[str, ...]:
        """Why looks found nothing, each once, oldest first."""
        return tuple(self._misses)

    def open(
        self, kept: ArtifactStore | None, ready: Iterable[tuple[tuple[str, Range], Artifact]] = ()
    ) -> None:
        """From now on look in ``kept``; None: these settings have no stable identity.

        Args:
            ready: fingerprint and range of what was made before: it is kept too.
        """
        self._kept, self.index = kept, Index()
        self._there.clear()
        self._closed = "nothing is kept under these settings: one of them has no stable identity"
        for key, artifact in ready:
            self._keep(key, artifact)

    def close(self) -> None:
        """From now on nothing is looked up or kept."""
        self._kept, self.index = None, Index()
        self._there.clear()
        self._closed = "nothing is looked up: disable_cache"

    def read_index(self) -> None:
        """Read what the root lists."""
        if self._kept is None:
            return
        found = read_index(self._kept)
        self.index = found.value if isinstance(found, Hit) else Index()
        self._tell("the index", found)

    def write_index(self, entries: Iterable[IndexEntry]) -> int:
        """Add those of ``entries`` that the root has to what it lists; how many it lists then."""
        if self._kept is None:
            return 0
        there = [entry for entry in entries if (entry.fingerprint, entry.range) in self._there]
        self.index = write_index(self._kept, there)
        return len(self.index.entries)

    def find(self, unit: Unit, *, again: bool = False) -> Artifact | None:
        """The kept artifact, verified; where there is none, :attr:`misses` says why.

        Args:
            again: nothing is said of a miss, because it was said a moment ago.
        """
        found = self._look(unit)
        if isinstance(found, Hit):
            return found.value
        if not again:
            self._tell(unit.label, found)
        return None

    def _look(self, unit: Unit) -> Found[Artifact]:
        if self._kept is None:
            return Miss(self._closed, Cause.UNAVAILABLE)
        if unit.is_unnamed:
            return Miss("it has no stable identity, so it is never kept", Cause.UNAVAILABLE)
        found = self._kept.find(unit.fingerprint, unit.range)
        if isinstance(found, Miss) and found.cause is Cause.ABSENT and self.index.entries:
            return Miss(self.index.why_not(*unit.key), found.cause)
        return found

    def served(self, unit: Unit) -> None:
        """What :meth:`find` found became a function."""
        self._there.add(unit.key)
        self._tell(unit.label, Hit(None))

    def refused(self, unit: Unit, error: Exception) -> None:
        """What :meth:`find` found could not be loaded."""
        self._tell(unit.label, Miss(f"it does not load here: {error!r}"))

    def keep(self, unit: Unit, artifact: Artifact) -> None:
        """Keep what was made for ``unit``, where anything is kept."""
        self._keep(unit.key, artifact)

    def _keep(self, key: tuple[str, Range], artifact: Artifact) -> None:
        fingerprint, _range = key
        if self._kept is None or is_unnamed(fingerprint) or not artifact.is_storable:
            return
        self._kept.keep(fingerprint, artifact)
        self._there.add(key)

    def turns(self, units: Iterable[Unit]) -> AbstractContextManager[None]:
        """Be the only one on the root that compiles ``units``."""
        return nullcontext() if self._kept is None else self._kept.flights([unit.key for unit in units])

    def _tell(self, what: str, found: Found[Any]) -> None:
        reason = found.reason if isinstance(found, Miss) else ""
        if reason:
            self._misses.setdefault(f"{what}: {reason}")
            if len(self._misses) > MOST:
                del self._misses[next(iter(self._misses))]
        # Where nothing is ever looked up there is nothing to count.
        if self._kept is not None:
            self._bus.emit(StoreLookup(what=what, hit=not reason, reason=reason))
