"""Run a call with something put in place of each piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch_piecewise.entry import MISS, Entry
from torch_piecewise.errors import GuardError
from torch_piecewise.program import PieceInfo, SizeKey
from torch_piecewise.ranges import Range
from torch_piecewise.stitching import Runner

Results = tuple[Any, ...]
Piece = Callable[..., Results]


@dataclass(frozen=True)
class Visited:
    """A piece about to run.

    Attributes:
        info: which one.
        range: the range whose code would serve it.
        size: of the dispatch dim; None where no size changes.
        compiled, eager: both take the piece's inputs and return its outputs.
        runs_eagerly: whether ``compiled`` is eager too, as the piece failed or was slow.
    """

    info: PieceInfo
    range: Range
    size: int | None
    compiled: Piece
    eager: Piece
    runs_eagerly: bool


Visitor = Callable[[Visited, tuple[Any, ...]], Results]
"""Called instead of each piece, with its inputs; what it returns flows on."""

Around = Callable[[Runner, Runner, tuple[Any, ...]], Results]
"""Called instead of a whole call, with what serves it, what visits its pieces, and the graph's inputs."""


def call_through(
    entries: Iterable[Entry],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    visitor: Visitor,
    around: Around | None = None,
) -> None:
    """Make one call of the model, ``visitor`` standing in for each of its pieces.

    Args:
        around: stands in for the call as a whole; None: the pieces are visited, and nothing else.

    Raises:
        GuardError: no trace serves such a call.
    """
    known = tuple(entries)
    for entry in known:
        found = entry.call_with(
            lambda key, entry=entry: _whole(entry, key, visitor, around),  # type: ignore[misc]
            *args,
            **kwargs,
        )
        if found is not MISS:
            return
    raise GuardError(
        "No trace serves this call",
        expected="inputs like those of a call that was made before",
        got=_reasons(known, args, kwargs),
        hint="call the model once with such inputs, under the same grad mode, then verify or profile it",
    )


def _reasons(entries: Sequence[Entry], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    reasons = dict.fromkeys(str(entry.why_not(*args, **kwargs)) for entry in entries)
    return "; ".join(reasons) if reasons else "a model that was not called yet"


def _whole(entry: Entry, key: SizeKey, visitor: Visitor, around: Around | None) -> Runner:
    visiting = _runner(entry, key, visitor)
    if around is None:
        return visiting
    return lambda *inputs: around(entry.program.table.find(key), visiting, inputs)


def _runner(entry: Entry, key: SizeKey, visitor: Visitor) -> Runner:
    program = entry.program
    size = program.values_of(key).get(program.sizes.dispatch or "")
    serving, ready = program.chosen(key)
    callables: dict[str, Piece] = {}
    for info in program.pieces.infos:
        eager = program.pieces.graph(info.name).forward
        one = ready.get(info.name)
        run = one.run if one is not None else eager
        is_eager = one is None or one.artifact is None
        visited = Visited(
            info, serving if info.ranged else program.any_size, size, run, eager, runs_eagerly=is_eager
        )
        callables[info.name] = lambda *inputs, visited=visited: visitor(visited, inputs)
    return program.stitched.bind({name: callables[name] for name in program.stitched.pieces})


def calls_of(inputs: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The calls that ``inputs`` stand for.

    A tuple holds the positional arguments of one call, a mapping the keyword arguments, a list several calls;
    anything else is the only argument.
    """
    if isinstance(inputs, list):
        return [call for one in inputs for call in calls_of(one)]
    if isinstance(inputs, Mapping):
        return [((), dict(inputs))]
    return [(inputs if isinstance(inputs, tuple) else (inputs,), {})]
