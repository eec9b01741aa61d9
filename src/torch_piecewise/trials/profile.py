"""Each distinct piece's time against eager's, on the values that really reach it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_piecewise.entry import Entry
from torch_piecewise.ranges import Range
from torch_piecewise.trials.base import Results, Visited, call_through, calls_of
from torch_piecewise.trials.copies import copied

SLOWER = 1.05
"""A piece is slow when its median is this many times eager's: less is within what a measurement varies."""

_SAMPLE_SECONDS = 2e-4
"""Shorter calls are made several times in a sample, so that the clock's own cost does not count."""


@dataclass(frozen=True)
class PieceTime:
    """A distinct piece for one range, measured.

    Attributes:
        piece: name of its first occurrence.
        fingerprint: its identity; empty for a piece that is never compiled.
        range: whose code was measured.
        size: of the dispatch dim; None where no size changes.
        times: how often the straight line calls it.
        compiled, eager: medians of one call, in seconds.
        runs_eagerly: it ran eagerly already, so there is nothing to compare.
    """

    piece: str
    fingerprint: str
    range: Range
    size: int | None
    times: int
    compiled: float
    eager: float
    runs_eagerly: bool = False

    @property
    def speedup(self) -> float:
        """Eager's time over the compiled piece's."""
        return self.eager / self.compiled if self.compiled else 1.0

    @property
    def is_slow(self) -> bool:
        """Whether eager is faster, beyond what a measurement varies."""
        return not self.runs_eagerly and self.compiled > SLOWER * self.eager


@dataclass(frozen=True)
class Profile:
    """What :func:`profile` measured, in the order in which the pieces first ran."""

    pieces: tuple[PieceTime, ...]

    def __str__(self) -> str:
        rows = [("piece", "times", "size", "compiled", "eager", "speedup")]
        rows += [
            (
                one.piece,
                str(one.times),
                str(one.size) if one.size is not None else "",
                f"{one.compiled * 1e6:.0f} us",
                f"{one.eager * 1e6:.0f} us",
                "eager" if one.runs_eagerly else f"{one.speedup:.2f}x",
            )
            for one in self.pieces
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows
        )


@dataclass
class _Sample:
    """A distinct piece with inputs that reached it."""

    visited: Visited
    inputs: tuple[Any, ...]
    changes_inputs: bool
    times: int = 1


def profile(entries: Iterable[Entry], inputs: Any, *, rounds: int = 20) -> Profile:
    """Measure each distinct piece compiled and eager, alternately.

    The model's own call runs once for each of ``inputs``; the measurements run on copies of what reached
    the pieces.

    Args:
        inputs: see :func:`~torch_piecewise.trials.base.calls_of`; a list of calls of several sizes measures
            several ranges.
        rounds: samples of each; the median counts.

    Raises:
        GuardError: no trace serves such a call.
    """
    known = tuple(entries)
    measured: list[PieceTime] = []
    for args, kwargs in calls_of(inputs):
        samples: dict[str, _Sample] = {}

        def visit(
            visited: Visited, values: tuple[Any, ...], samples: dict[str, _Sample] = samples
        ) -> Results:
            return _sampled(visited, values, samples)

        call_through(known, args, kwargs, visit)
        measured += [_measured(sample, rounds) for sample in samples.values()]
    return Profile(tuple(measured))


def _sampled(visited: Visited, inputs: tuple[Any, ...], samples: dict[str, _Sample]) -> Results:
    identity = visited.info.fingerprint or visited.info.name
    if identity in samples:
        samples[identity].times += 1
        return visited.eager(*inputs)
    copies = copied(inputs)
    results = visited.eager(*inputs)
    samples[identity] = _Sample(visited, copies, _differ(inputs, copies))
    return results


def _differ(inputs: tuple[Any, ...], copies: tuple[Any, ...]) -> bool:
    pairs = zip(inputs, copies, strict=True)
    return any(not _same(one, other) for one, other in pairs if isinstance(one, Tensor))


def _same(one: Tensor, other: Tensor) -> bool:
    if one.is_floating_point() or one.is_complex():
        return bool(torch.isclose(one, other, rtol=0.0, atol=0.0, equal_nan=True).all())
    return torch.equal(one, other)


def _measured(sample: _Sample, rounds: int) -> PieceTime:
    visited = sample.visited
    calls = {"compiled": visited.compiled, "eager": visited.eager}
    loops = {name: _loops(call, sample) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {"compiled": [], "eager": []}
    for number in range(rounds):
        # The order alternates, so that a drift of the machine's speed favours neither.
        for name in sorted(calls, reverse=bool(number % 2)):
            seconds[name].append(_seconds(calls[name], sample, loops[name]))
    return PieceTime(
        visited.info.name,
        visited.info.fingerprint or "",
        visited.range,
        visited.size,
        sample.times,
        statistics.median(seconds["compiled"]),
        statistics.median(seconds["eager"]),
        visited.runs_eagerly,
    )


def _loops(call: Callable[..., Any], sample: _Sample) -> int:
    """Calls in one sample; the first calls, which set things up, are made here."""
    _seconds(call, sample, 1)
    once = _seconds(call, sample, 1)
    return 1 if sample.changes_inputs else max(1, min(1000, int(_SAMPLE_SECONDS / max(once, 1e-9))))


def _seconds(call: Callable[..., Any], sample: _Sample, loops: int) -> float:
    # A piece that changes its inputs gets fresh ones each time, or counters in them would run away.
    inputs = copied(sample.inputs) if sample.changes_inputs else sample.inputs
    _wait(inputs)
    start = time.perf_counter()
    for _ in range(loops):
        call(*inputs)
    _wait(inputs)
    return (time.perf_counter() - start) / loops


def _wait(inputs: tuple[Any, ...]) -> None:
    if any(isinstance(value, Tensor) and value.is_cuda for value in inputs):
        torch.cuda.synchronize()
