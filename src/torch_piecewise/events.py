"""What happens inside, as typed values, and who listens.

An :class:`Event` is a frozen record. A :class:`Bus` hands each event to its observers; it belongs to
one compiled model, never to the process. :class:`Counters` is the observer that tests and reports use.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from torch_piecewise.errors import ArgumentError, PiecewiseError, did_you_mean
from torch_piecewise.ranges import Range
from torch_piecewise.tags import BACKBONE, ModelTag

logger = logging.getLogger("torch_piecewise")


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events.

    Attributes:
        at: seconds on ``time.monotonic``'s clock when it was made.
    """

    at: float = field(default_factory=time.monotonic)

    def counts(self) -> tuple[tuple[str, int], ...]:
        """What :class:`Counters` adds for it, by name."""
        return ()


@dataclass(frozen=True, kw_only=True)
class PhaseStarted(Event):
    """A phase of the staircase began: trace, split, fingerprint, compile, stitch, load, capture."""

    phase: str


@dataclass(frozen=True, kw_only=True)
class PhaseEnded(Event):
    """A phase ended.

    Attributes:
        seconds: how long it took.
        failed: whether it ended by an exception.
        tag: the part of a model that it was about.
    """

    phase: str
    seconds: float
    failed: bool = False
    tag: ModelTag = BACKBONE


@dataclass(frozen=True, kw_only=True)
class GraphCaptured(Event):
    """Dynamo traced the model (or one of its graphs) once.

    Attributes:
        nodes: of the graph, inputs counted.
        blocks_shared: calls of modules that were copied from the trace of a module like them.
        blocks_apart: of classes with several modules, why a call was traced by itself, by class name.
    """

    nodes: int
    blocks_shared: int = 0
    blocks_apart: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GraphSplit(Event):
    """The graph was cut.

    Attributes:
        pieces: compiled pieces, cuts not counted.
        cuts: pieces that run eagerly because they hold splitting ops.
        distinct: different fingerprints among ``pieces``.
    """

    pieces: int
    cuts: int
    distinct: int


@dataclass(frozen=True, kw_only=True)
class PieceCompileStarted(Event):
    """A distinct piece and a range are handed to a compiler, in this process or in a worker."""

    piece: str
    range: Range
    compiler: str


@dataclass(frozen=True, kw_only=True)
class PieceCompiled(Event):
    """A compiler made an artifact for one distinct piece and one range.

    Attributes:
        fingerprint: identity of the piece, which several pieces share.
    """

    piece: str
    range: Range
    compiler: str
    seconds: float
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class PieceLoaded(Event):
    """An artifact became a callable.

    Attributes:
        source: ``"compiled"`` (just made) or ``"store"``.
        fingerprint: identity of the piece, which several pieces share.
    """

    piece: str
    range: Range
    compiler: str
    source: str
    seconds: float
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class PieceFailed(Event):
    """A piece failed to compile; with ``on_piece_error="eager"`` it runs eagerly instead."""

    piece: str
    range: Range
    reason: str
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class PieceKeptEager(Event):
    """A piece was measured, and runs eagerly from now on because that is faster.

    Attributes:
        compiled, eager: medians of one call, in seconds.
    """

    piece: str
    range: Range
    compiled: float
    eager: float
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class StoreLookup(Event):
    """The store was asked for an entry.

    Attributes:
        hit: whether it had it.
        reason: for a miss, why; empty for a hit.
    """

    what: str
    hit: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Recompiled(Event):
    """A guard failed and the model was traced again."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class PassRecord(Event):
    """One graph pass met one graph.

    Attributes:
        name: the pass's name.
        piece: whose graph it was; empty where a manager runs outside any compile of ours.
        range: the sizes the graph serves.
        ran: False where the pass does not apply to the range; then the rest is 0.
        matches: places rewritten; None if the pass does not count.
        seconds: time in the pass alone, dumps and checks not counted.
        nodes_before, nodes_after: size of the graph.
    """

    name: str
    range: Range
    piece: str = ""
    ran: bool = True
    matches: int | None = None
    seconds: float = 0.0
    nodes_before: int = 0
    nodes_after: int = 0


Observer = Callable[[Event], None]


class Subscription:
    """An observer on a bus, until it is closed; as a context manager it is closed at the end of the block."""

    def __init__(self, observer: Observer, bus: Bus) -> None:
        self.observer = observer
        self._bus = bus

    def close(self) -> None:
        """No longer tell the observer; a second time does nothing."""
        self._bus.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()


class Bus:
    """Hands each event to every observer, in the order in which they were added. Safe to use from threads.

    ::

        with tp.program_of(model).bus.add(print):
            model(x)

    Args:
        tag: the part of a model whose events these are.
    """

    def __init__(self, *observers: Observer, tag: ModelTag = BACKBONE) -> None:
        self._lock = threading.Lock()
        self._subscriptions = tuple(Subscription(observer, self) for observer in observers)
        self.tag = tag

    def emit(self, event: Event) -> None:
        """Call every observer with ``event`` on this thread; what one raises is logged, and calls go on."""
        for one in self._subscriptions:
            try:
                one.observer(event)
            except Exception:
                logger.exception("an observer of events failed at %s", type(event).__name__)

    def add(self, observer: Observer) -> Subscription:
        """From now on also call ``observer``, until what is returned is closed (``with`` does that)."""
        added = Subscription(observer, self)
        with self._lock:
            self._subscriptions = (*self._subscriptions, added)
        return added

    def remove(self, subscription: Subscription) -> None:
        """No longer tell the observer of ``subscription``; one that is not on this bus changes nothing."""
        with self._lock:
            self._subscriptions = tuple(one for one in self._subscriptions if one is not subscription)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Emit :class:`PhaseStarted` and :class:`PhaseEnded` around a block."""
        self.emit(PhaseStarted(phase=name))
        start = time.monotonic()
        try:
            yield
        except BaseException:
            seconds = time.monotonic() - start
            self.emit(PhaseEnded(phase=name, seconds=seconds, failed=True, tag=self.tag))
            raise
        self.emit(PhaseEnded(phase=name, seconds=time.monotonic() - start, tag=self.tag))


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
            ArgumentError: there is no count of a name.
        """
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
