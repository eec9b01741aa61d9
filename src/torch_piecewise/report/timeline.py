"""Recorded events as spans and moments of a timeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch_piecewise.cudagraphs.graph_events import CaptureRefused, SizeCaptured, SizeEvicted
from torch_piecewise.events import (
    GraphCaptured,
    PhaseEnded,
    PhaseStarted,
    PieceCompiled,
    PieceFailed,
    PieceKeptEager,
    PieceLoaded,
    Recompiled,
    StoreLookup,
)
from torch_piecewise.events.recorder import Recorded
from torch_piecewise.report.facts import Lookups, Moment, Span


def spans_of(recorded: Sequence[Recorded]) -> list[Span]:
    """Phases, compiles, loads and captures; rows are such that nothing in a row overlaps."""
    zero = _zero(recorded)
    phases, compiles, loads, captures = [], [], [], []
    for one in recorded:
        event = one.event
        if isinstance(event, PhaseEnded):
            start = event.at - event.seconds - zero
            phases.append(Span(event.phase, "phase", "phases", 0, start, event.seconds, event.failed))
        elif isinstance(event, PieceCompiled):
            name = f"{event.piece} {event.range}"
            start = event.at - event.seconds - zero
            compiles.append(Span(name, event.compiler, "compile", 0, start, event.seconds))
        elif isinstance(event, PieceLoaded):
            name = f"{event.piece} {event.range}"
            start = event.at - event.seconds - zero
            loads.append(Span(name, f"from {event.source}", "load", 0, start, event.seconds))
        elif isinstance(event, SizeCaptured):
            name = f"size {event.descriptor.num_tokens}"
            start = event.at - event.seconds - zero
            captures.append(Span(name, event.mode.name, "capture", 0, start, event.seconds))
    return [span for lane in (phases, compiles, loads, captures) for span in _in_rows(lane)]


def _zero(recorded: Sequence[Recorded]) -> float:
    starts = [one.event.at - float(getattr(one.event, "seconds", 0.0)) for one in recorded]
    return min(starts, default=0.0)


def _in_rows(spans: Iterable[Span]) -> list[Span]:
    ends: list[float] = []
    placed = []
    for span in sorted(spans, key=lambda span: (span.start, -span.seconds)):
        row = next((row for row, end in enumerate(ends) if end <= span.start + 1e-6), len(ends))
        ends[row : row + 1] = [span.start + span.seconds]
        placed.append(Span(span.name, span.what, span.lane, row, span.start, span.seconds, span.failed))
    return placed


def moments_of(recorded: Sequence[Recorded]) -> list[Moment]:
    """Everything else that happened, in order."""
    zero = _zero(recorded)
    return [
        Moment(one.event.at - zero, *told)
        for one in recorded
        if (told := _told(one.event)) is not None
        and not isinstance(one.event, PhaseStarted | PhaseEnded | PieceCompiled | PieceLoaded)
    ]


def _told(event: object) -> tuple[str, str] | None:
    match event:
        case GraphCaptured(nodes=nodes):
            return "traced", f"a graph of {nodes} nodes"
        case Recompiled(reason=reason):
            return "traced again", reason
        case PieceFailed(piece=piece, range=range, reason=reason):
            return "failed to compile", f"{piece} {range}: {reason}"
        case PieceKeptEager(piece=piece, range=range, compiled=compiled, eager=eager):
            times = f"compiled {compiled * 1e6:.0f} us, eager {eager * 1e6:.0f} us"
            return "stays eager", f"{piece} {range}: {times}"
        case CaptureRefused(descriptor=descriptor, reason=reason):
            return "not captured", f"size {descriptor.num_tokens}: {reason}"
        case SizeEvicted(descriptor=descriptor, freed=freed):
            return "given up", f"the graphs of size {descriptor.num_tokens}, {freed} bytes freed"
        case StoreLookup(what=what, hit=False, reason=reason):
            return "missed", f"{what}: {reason}"
    return None


def lookups_of(recorded: Sequence[Recorded]) -> Lookups:
    """What the store had and had not, in the order in which it was last asked for each."""
    # A miss is asked again once this process has its turn to compile; the last answer is the one that counts.
    answers: dict[str, StoreLookup] = {}
    for one in recorded:
        if isinstance(one.event, StoreLookup):
            answers.pop(one.event.what, None)
            answers[one.event.what] = one.event
    return Lookups(
        tuple(event.what for event in answers.values() if event.hit),
        tuple((event.what, event.reason) for event in answers.values() if not event.hit),
    )
