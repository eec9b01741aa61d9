"""What a report says, as values: the JSON document is exactly this, field by field."""

from __future__ import annotations

from dataclasses import dataclass, field

VERSION = 1
"""Of the document; grows when a field changes its meaning or goes."""


@dataclass(frozen=True)
class Op:
    """One operation of a piece.

    Attributes:
        name: of its result in the piece's code.
        target: what is called.
        result: dtype and shape of its result; empty where the trace that knew it is gone (a warm start).
        where: the user's line it came from, ``file:line (code)``; empty where unknown.
    """

    name: str
    target: str
    result: str
    where: str


@dataclass(frozen=True)
class Built:
    """A distinct piece for one range.

    Attributes:
        range: ``[start, end]``, or ``any size``.
        compiler: what made it; ``eager`` where the piece runs as it was traced.
        origin: ``compiled``, ``store``, or why it is eager.
        compile_seconds, load_seconds: None where this process did not do it.
        size: bytes of what is kept; None for what cannot be kept.
        files: names of the shared objects in it.
        guards: what the compiler relied on beside the range.
        code: generated code; empty where the compiler shows none.
    """

    range: str
    compiler: str
    origin: str
    compile_seconds: float | None = None
    load_seconds: float | None = None
    size: int | None = None
    files: tuple[str, ...] = ()
    guards: tuple[str, ...] = ()
    code: str = ""


@dataclass(frozen=True)
class Timed:
    """A distinct piece measured against eager; seconds are medians of one call."""

    range: str
    size: str
    compiled: float
    eager: float
    kept_eager: bool = False


@dataclass(frozen=True)
class Kind:
    """A distinct piece.

    Attributes:
        letter: A, B, ... in order of first use.
        title: its main operations, for people.
        pieces: names of all pieces that are this one, in order.
        eager: why it is not compiled; empty where it is.
        inputs: one line each: name, dtype and shape.
        ops: in order.
        code: the traced graph as Python.
    """

    letter: str
    title: str
    pieces: tuple[str, ...]
    eager: str
    inputs: tuple[str, ...]
    ops: tuple[Op, ...]
    code: str
    built: tuple[Built, ...] = ()
    timed: tuple[Timed, ...] = ()


@dataclass(frozen=True)
class Step:
    """One step of the straight line.

    Attributes:
        name: ``submod_N`` of a piece; empty for a cut.
        letter: of the piece's :class:`Kind`; empty for a cut.
        calls: what a cut calls.
        lines: a cut's own lines.
    """

    name: str = ""
    letter: str = ""
    calls: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The letter of a piece; for a cut the operations it calls."""
        return self.letter or ", ".join(self.calls)


@dataclass(frozen=True)
class Fold:
    """Steps that follow each other ``times`` times; the first round's stand for all."""

    steps: tuple[Step, ...]
    times: int


@dataclass(frozen=True)
class RangeUse:
    """How often one compiled range served calls.

    Attributes:
        calls: counted calls.
        sizes: summed sizes of those calls.
        padded: what they were padded to, summed; equals ``sizes`` where nothing is padded.
    """

    range: str
    calls: int = 0
    sizes: int = 0
    padded: int = 0

    @property
    def waste(self) -> float:
        """The part of the work that was padding, 0 to 1."""
        return 1 - self.sizes / self.padded if self.padded else 0.0


@dataclass(frozen=True)
class ProgramFacts:
    """One trace.

    Attributes:
        symbols: symbolic size -> how a call's value of it is read.
        dispatch: the symbol that ranges are about; empty where no size changes.
        relations: conditions on sizes that the trace relied on.
        steps, folds: the straight line, whole and folded.
        use: None where calls were not counted.
        eager: pieces that were to be compiled and run as they were traced for some size.
    """

    symbols: dict[str, str]
    dispatch: str
    ranges: tuple[str, ...]
    relations: tuple[str, ...]
    kinds: tuple[Kind, ...]
    steps: tuple[Step, ...]
    folds: tuple[Fold, ...]
    use: tuple[RangeUse, ...] | None = None
    eager: tuple[str, ...] = ()


@dataclass(frozen=True)
class Span:
    """Something that took time. ``start`` is in seconds since the first event.

    Attributes:
        lane: ``phases``, ``compile``, ``load`` or ``capture``, and the number of the row in it.
    """

    name: str
    what: str
    lane: str
    row: int
    start: float
    seconds: float
    failed: bool = False


@dataclass(frozen=True)
class Moment:
    """Something that happened at once: a miss, a recompile, a failure."""

    at: float
    what: str
    text: str


@dataclass(frozen=True)
class Lookups:
    """What was asked of the store.

    Attributes:
        hits: what was there.
        misses: what was not, and why.
    """

    hits: tuple[str, ...] = ()
    misses: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class GraphUse:
    """Calls that static graphs served alike, or that none did.

    Attributes:
        size: size of the calls.
        padded_to: size of the graphs that served them; None where none did.
        mode: ``FULL`` or ``PIECEWISE`` where graphs served them, else ``NONE``.
        count: how many calls; 0 for a size that was captured and not called.
        why: for ``NONE``, why no graph served them.
        bytes: device memory that capturing ``padded_to`` took, beyond what was there; None for ``NONE``.
        seconds: how long that took; None for ``NONE``.
    """

    size: int
    padded_to: int | None
    mode: str
    count: int
    why: str = ""
    bytes: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Report:
    """A recorded run of one compiled model.

    Attributes:
        made: seconds since the epoch.
        versions: what ran: library, torch, Python, platform.
        settings: those that differ from the defaults, as texts.
        programs: newest trace first.
        graphs: what static graphs served, over all traces; empty where none were asked for.
    """

    title: str
    made: float
    versions: dict[str, str]
    settings: dict[str, str]
    programs: tuple[ProgramFacts, ...]
    spans: tuple[Span, ...] = ()
    moments: tuple[Moment, ...] = ()
    lookups: Lookups = field(default_factory=Lookups)
    graphs: tuple[GraphUse, ...] = ()
    version: int = VERSION
