"""What compiling a model would do, before it is compiled: where it is cut, into what, what is in the way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch_piecewise.backend import Workshop
from torch_piecewise.call_form import call_form
from torch_piecewise.capture import capture
from torch_piecewise.config import Config
from torch_piecewise.dynamic_dims import Dims
from torch_piecewise.errors import CaptureError, GraphBreakError
from torch_piecewise.events import Bus, GraphCaptured
from torch_piecewise.events.recorder import Recorder
from torch_piecewise.managers import Managers
from torch_piecewise.program import Program
from torch_piecewise.ranges import Range
from torch_piecewise.report import Recording, Report, collect
from torch_piecewise.torch_private.graph_breaks import every_graph_break
from torch_piecewise.trials.base import calls_of


@dataclass(frozen=True)
class Explained:
    """What is explained.

    Attributes:
        title: what people call it.
        function: what would be traced: a function or bound method.
        named: its parameters by the names people know.
        dims: which dims of its arguments are dynamic.
    """

    title: str
    function: Callable[..., Any]
    named: inspect.Signature
    dims: Dims
    config: Config


@dataclass(frozen=True)
class Obstacle:
    """Something that keeps a model from being traced whole.

    Attributes:
        where: ``file:line (code)``; empty where unknown.
        hint: what to do; empty where nobody knows.
    """

    reason: str
    where: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Explanation:
    """What compiling would do.

    Attributes:
        report: cut graph, pieces and operations; None where the model cannot be traced.
        to_compile: range -> how many distinct pieces are compiled for it.
        obstacles: what is in the way; empty where nothing is.
    """

    title: str
    report: Report | None
    to_compile: Mapping[str, int] = field(default_factory=dict)
    obstacles: tuple[Obstacle, ...] = ()

    def __str__(self) -> str:
        if self.report is None:
            return "\n".join(
                [f"{self.title} cannot be compiled as it is:", *map(_obstacle_text, self.obstacles)]
            )
        (program,) = self.report.programs
        cuts: dict[str, int] = {}
        for step in program.steps:
            for call in () if step.letter else step.calls:
                cuts[call] = cuts.get(call, 0) + 1
        pieces = sum(len(kind.pieces) for kind in program.kinds)
        lines = [f"{self.title}: {pieces} pieces, {len(program.kinds)} distinct"]
        for kind in program.kinds:
            eager = f" (stays eager: {kind.eager})" if kind.eager else ""
            lines.append(f"  {kind.letter}  {len(kind.pieces)} x  {kind.title}{eager}")
        lines += [f"cut {times} times at {call}" for call, times in cuts.items()] or ["not cut"]
        parts = [f"{number} for {name}" for name, number in self.to_compile.items() if number]
        lines.append(f"to compile: {sum(self.to_compile.values())} ({', '.join(parts)})")
        return "\n".join(lines)


def explain(callee: Explained, inputs: Any, *, every_break: bool = False) -> Explanation:
    """Trace and cut for such a call; nothing is compiled, and without ``every_break`` nothing runs.

    Args:
        inputs: a tuple of positional arguments, a dict of keyword arguments, or a single argument.
        every_break: where the graph breaks, run the call eagerly and tell every break, not only the first.
    """
    (args, kwargs), *_others = calls_of(inputs)
    recorder = Recorder()
    bus = Bus(recorder)
    call = call_form(callee.function, callee.named, args, kwargs)
    try:
        with bus.phase("trace"):
            captured = capture(callee.function, call, callee.dims, callee.config)
    except CaptureError as error:
        first = Obstacle(error.got or "", _place(error), error.hint or "")
        if not every_break or not isinstance(error, GraphBreakError):
            return Explanation(callee.title, None, obstacles=(first,))
        found = [Obstacle(*one) for one in every_graph_break(callee.function, args, kwargs)]
        return Explanation(callee.title, None, obstacles=_with_first(first, found))
    bus.emit(GraphCaptured(nodes=len(captured.raw.graph.graph.nodes)))
    program = Workshop(callee.config, bus, Managers(callee.config, bus, None)).build(
        captured.raw.graph,
        shape_env=captured.raw.shape_env,
        relations=captured.relations,
        dispatch=captured.dispatch,
        symbols=captured.symbols,
        prepare=False,
    )
    report = collect(Recording(callee.title, callee.config, [program], recorder.recorded()))
    return Explanation(callee.title, report, _to_compile(program))


def _to_compile(program: Program) -> dict[str, int]:
    wanted = [*program.sizes.ranges, *(Range(size, size) for size in program.sizes.exact)]
    units = {unit.key for one in wanted or [program.any_size] for unit in program.pieces.units(one).values()}
    counts: dict[str, int] = {}
    for _fingerprint, range in sorted(units, key=lambda key: key[1]):
        text = "any size" if range == program.any_size else str(range)
        counts[text] = counts.get(text, 0) + 1
    return counts


def _with_first(first: Obstacle, found: Sequence[Obstacle]) -> tuple[Obstacle, ...]:
    """All of ``found``, with ``first`` among them: where the trace of the whole stops, it says most."""
    places = [one.where for one in found]
    if first.where not in places:
        return first, *found
    return tuple(first if one.where == first.where else one for one in found)


def _place(error: CaptureError) -> str:
    """Where in the user's code; our messages carry it in their first sentence."""
    return error.what.partition(" at ")[2] if isinstance(error, GraphBreakError) else error.what


def _obstacle_text(one: Obstacle) -> str:
    lines = [f"- {one.where or 'somewhere'}", f"  {one.reason}"]
    return "\n".join([*lines, f"  to do: {one.hint}"] if one.hint else lines)
