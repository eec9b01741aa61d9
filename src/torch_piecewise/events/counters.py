"""The observer that tests and reports use: how often what happened, and how long phases took."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch_piecewise.errors import ArgumentError, PiecewiseError, did_you_mean
from torch_piecewise.events.kinds import (
    Event,
    GraphCaptured,
    GraphSplit,
    PassRecord,
    PhaseEnded,
    PieceCompiled,
    PieceCompileStarted,
    PieceFailed,
    PieceKeptEager,
    PieceLoaded,
    Recompiled,
    StoreLookup,
)

COUNTS: Mapping[str, str] = {
    "graphs_captured": "traces of the model",
    "blocks_shared": "calls of modules copied from the trace of a module like them",
    "recompiles": "traces because a guard failed",
    "pieces": "compiled pieces of cut graphs",
    "cuts": "pieces that run eagerly because they hold splitting ops",
    "distinct_pieces": "different ones among the pieces",
    "compiles_started": "distinct pieces and ranges handed to a compiler",
    "artifacts_compiled": "artifacts that a compiler made",
    "artifacts_loaded": "artifacts that became callable",
    "artifacts_loaded_from_compiled": "those of them just made",
    "artifacts_loaded_from_store": "those of them that were kept",
    "pieces_failed": "pieces that failed to compile",
    "pieces_kept_eager": "pieces measured and found faster eager",
    "store_hits": "look-ups that the store answered",
    "store_misses": "look-ups that it did not",
    "passes_run": "runs of a graph pass",
    "pass_matches": "places that passes rewrote",
    "sizes_captured": "kinds of batches captured",
    "static_graphs": "static graphs that they take",
    "sizes_evicted": "kinds of batches given up to stay within the budget",
    "sizes_dropped": "kinds of batches given up because memory they stood on changed",
    "captures_refused": "kinds of batches that stay without a graph",
    "calls_replayed": "calls served by static graphs",
    "calls_without_graphs": "calls served without, where graphs are asked for",
}
"""What is counted, by name."""


def _refuse_unknown(names: Iterable[str]) -> None:
    unknown = list(names)
    if unknown:
        hints = [hint for name in unknown if (hint := did_you_mean(name, COUNTS))]
        raise ArgumentError(
            f"There is no count named {', '.join(map(repr, unknown))}",
            expected=f"one of {', '.join(COUNTS)}",
            hint="; ".join(hints) or "see torch_piecewise.events.COUNTS",
        )


class CountMismatch(PiecewiseError, AssertionError):
    """Counters did not change as :meth:`Counters.expect` was told; lists each difference."""


class Counters:
    """Counts events; made for tests (``expect``) and reports. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        self._sources: tuple[Callable[[], Mapping[str, int]], ...] = ()

    def also(self, source: Callable[[], Mapping[str, int]]) -> None:
        """Ask ``source`` too from now on: for what is counted where an event each would cost too much."""
        with self._lock:
            self._sources = (*self._sources, source)

    def __call__(self, event: Event) -> None:
        with self._lock:
            for name, amount in _counted(event):
                self._counts[name] = self._counts.get(name, 0) + amount
            if isinstance(event, PhaseEnded):
                phase = f"encoder_{event.phase}" if event.tag.is_encoder else event.phase
                self._seconds[phase] = self._seconds.get(phase, 0.0) + event.seconds

    def __getitem__(self, name: str) -> int:
        return self.as_dict().get(name, 0)

    def as_dict(self) -> dict[str, int]:
        """All counts that are not zero."""
        with self._lock:
            counts, sources = dict(self._counts), self._sources
        # Not under the lock: sources have locks of their own, under which they emit events.
        for source in sources:
            counts |= {name: count + counts.get(name, 0) for name, count in source().items() if count}
        return counts

    def seconds(self) -> dict[str, float]:
        """Seconds spent per phase, summed; an encoder's apart, under ``encoder_compile`` and the like."""
        with self._lock:
            return dict(self._seconds)

    @contextlib.contextmanager
    def expect(self, **deltas: int) -> Iterator[None]:
        """Check that the block changes exactly these counts by exactly these amounts.

        Args:
            deltas: by name: those of :data:`COUNTS`, and those that an event of one's own counts as.

        Raises:
            CountMismatch: a named count changed by another amount.
            ArgumentError: there is no count of a name; or, before the block runs, an amount is no int.
        """
        for name, delta in deltas.items():
            if not isinstance(delta, int):
                raise ArgumentError(
                    f"expect({name}=...) takes a number",
                    expected="an int: by how much the block changes the count",
                    got=f"{delta!r} ({type(delta).__name__})",
                )
        before = self.as_dict()
        yield
        after = self.as_dict()
        _refuse_unknown(name for name in deltas if name not in COUNTS and name not in after)
        wrong = [
            f"{name}: expected +{delta}, got +{after.get(name, 0) - before.get(name, 0)}"
            for name, delta in deltas.items()
            if after.get(name, 0) - before.get(name, 0) != delta
        ]
        if wrong:
            raise CountMismatch("Counters changed differently", got="; ".join(wrong))


def _counted(event: Event) -> list[tuple[str, int]]:
    match event:
        case GraphCaptured(blocks_shared=shared):
            return [("graphs_captured", 1)] + ([("blocks_shared", shared)] if shared else [])
        case GraphSplit(pieces=pieces, cuts=cuts, distinct=distinct):
            return [("pieces", pieces), ("cuts", cuts), ("distinct_pieces", distinct)]
        case PieceCompileStarted():
            return [("compiles_started", 1)]
        case PieceCompiled():
            return [("artifacts_compiled", 1)]
        case PieceLoaded(source=source):
            return [("artifacts_loaded", 1), (f"artifacts_loaded_from_{source}", 1)]
        case PieceFailed():
            return [("pieces_failed", 1)]
        case PieceKeptEager():
            return [("pieces_kept_eager", 1)]
        case StoreLookup(hit=hit):
            return [("store_hits" if hit else "store_misses", 1)]
        case Recompiled():
            return [("recompiles", 1)]
        case PassRecord(ran=True, matches=matches):
            return [("passes_run", 1), ("pass_matches", matches or 0)]
        case _:
            return list(event.counts())
