"""What happens inside, as frozen records."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch_piecewise.ranges import Range
from torch_piecewise.tags import BACKBONE, ModelTag


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
