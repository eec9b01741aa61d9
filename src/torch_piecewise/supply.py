"""What serves a piece now: the best that is ready, made at once or in the background."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch_piecewise.artifact import Artifact
from torch_piecewise.background import Background
from torch_piecewise.errors import PiecewiseError
from torch_piecewise.manager import CompilerManager, Ready, Unit
from torch_piecewise.ranges import Range

logger = logging.getLogger("torch_piecewise")

Key = tuple[str, Range]


@dataclass(frozen=True)
class Tiers:
    """How pieces are made ready.

    Attributes:
        first: makes what a call needs.
        better: makes, in the background, what replaces it; None for nothing.
        background: where that happens; needed for ``better`` and ``lazily``.
        lazily: ``first`` works in the background too; until then pieces run as they were traced.
    """

    first: CompilerManager
    better: CompilerManager | None = None
    background: Background | None = None
    lazily: bool = False


class Supply:
    """Hands out what runs the pieces of one program.

    Args:
        tiers: who makes it.
        on_news: called, on the background's thread, whenever a piece has something better to run.
        on_settled: called there after the last of several such news: nothing better is being made any more.
    """

    def __init__(
        self, tiers: Tiers, on_news: Callable[[], None], on_settled: Callable[[], None] = lambda: None
    ) -> None:
        self.tiers = tiers
        self._on_news = on_news
        self._on_settled = on_settled
        self._asked: set[Key] = set()
        self._failed: set[Key] = set()
        self._being_made = 0
        self._had_news = False
        self._lock = threading.Lock()

    def ready(self, units: Iterable[Unit]) -> dict[Key, Ready]:
        """What runs each unit, by key; one that is missing runs as it was traced, until there is news.

        Raises:
            PieceCompileError: a piece failed that had to be made at once.
        """
        wanted = {unit.key: unit for unit in units}
        better, first = self.tiers.better, self.tiers.first
        found = dict(better.kept(wanted.values())) if better is not None else {}
        rest = [unit for key, unit in wanted.items() if key not in found]
        found |= first.kept(rest) if self.tiers.lazily else first.prepare(rest)
        self._ask_for([unit for unit in rest if better is not None or unit.key not in found])
        return found

    def made(self) -> Mapping[Key, Ready]:
        """What is ready by now, by fingerprint and range."""
        better = self.tiers.better
        return {**self.tiers.first.made(), **(better.made() if better is not None else {})}

    def given_up(self) -> frozenset[Key]:
        """What runs as it was traced because its compiler failed."""
        failed = {key for key, one in self.made().items() if one.artifact is None}
        with self._lock:
            return frozenset(failed | self._failed)

    def lacking(self) -> frozenset[Key]:
        """What was asked for and is not compiled: it failed, or is not made yet."""
        made = self.made()
        failed = {key for key, one in made.items() if one.artifact is None}
        with self._lock:
            return frozenset(failed | (self._asked - made.keys()))

    def generated_code(self, artifact: Artifact) -> str:
        """The code that its compiler generated, for people; empty where it shows none."""
        for manager in filter(None, (self.tiers.first, self.tiers.better)):
            readable = getattr(manager.compiler, "readable", None)
            if manager.compiler.name == artifact.compiler and readable is not None:
                return str(readable(artifact))
        return ""

    def _ask_for(self, units: list[Unit]) -> None:
        """Have the background make what is missing; each unit is asked for once."""
        with self._lock:
            new = [unit for unit in units if unit.key not in self._asked]
            self._asked.update(unit.key for unit in new)
        background = self.tiers.background
        if not new or background is None:
            return
        tiers = [self.tiers.first] if self.tiers.lazily else []
        if self.tiers.better is not None:
            tiers.append(self.tiers.better)
        jobs = [self._job(manager, unit) for manager in tiers for unit in new]
        with self._lock:
            self._being_made += len(jobs)
        for job in jobs:
            background.add(job)

    def _job(self, manager: CompilerManager, unit: Unit) -> Callable[[], None]:
        def make() -> None:
            has_news = self._make(manager, unit)
            if has_news:
                self._on_news()
            with self._lock:
                self._being_made -= 1
                self._had_news = self._had_news or has_news
                settled = self._had_news and not self._being_made
                if settled:
                    self._had_news = False
            if settled:
                self._on_settled()

        return make

    def _make(self, manager: CompilerManager, unit: Unit) -> bool:
        """Make one piece ready in the background; whether there is one more now."""
        if self.tiers.background is None or self.tiers.background.is_stopped:
            return False
        try:
            manager.prepare([unit])
        except PiecewiseError as error:
            if not self.tiers.background.is_stopped:
                if manager is self.tiers.first:
                    with self._lock:
                        self._failed.add(unit.key)
                logger.warning("%s %s stays as it is: %s", unit.name, unit.range, error)
            return False
        return True
