"""Closed integer intervals, and how endpoints become ranges."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from torch_piecewise.errors import ConfigError

UNBOUNDED = sys.maxsize
"""The ``end`` of a range that nothing bounds. Dims are 64-bit, so this is their real limit."""


@dataclass(frozen=True, order=True, slots=True)
class Range:
    """A closed interval of sizes: ``start <= n <= end``, both ends included.

    Args:
        start: smallest size, >= 0.
        end: largest size, >= ``start``; :data:`UNBOUNDED` where nothing bounds it.

    Raises:
        ConfigError: ``start`` below 0 or above ``end``, or an end that is no int.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(
                    f"Range {name} is not an integer",
                    expected="int",
                    got=f"{value!r} ({type(value).__name__})",
                )
        if not 0 <= self.start <= self.end:
            raise ConfigError(
                "Range is empty or negative",
                expected="0 <= start <= end",
                got=f"start={self.start}, end={self.end}",
                hint="a range is closed: Range(1, 8) holds 1 and 8",
            )

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.start <= size <= self.end

    def is_single_size(self) -> bool:
        """Whether the range holds exactly one size."""
        return self.start == self.end

    def __str__(self) -> str:
        return f"[{self.start}, {'inf' if self.end == UNBOUNDED else self.end}]"


def ranges_from_endpoints(endpoints: Iterable[int], *, start: int = 1) -> tuple[Range, ...]:
    """Ranges that cover every size from ``start`` up, cut after each endpoint.

    ``(8, 64)`` gives ``[1, 8], [9, 64], [65, inf]``; no endpoints give ``[1, inf]``.

    Args:
        endpoints: the last size of each range, in any order, duplicates allowed; each >= ``start``.
        start: first size covered.

    Raises:
        ConfigError: an endpoint below ``start``.
    """
    ordered = sorted(set(endpoints))
    if ordered and ordered[0] < start:
        raise ConfigError(
            "compile_ranges_endpoints has an endpoint that no size can reach",
            expected=f"integers >= {start}",
            got=repr(ordered[0]),
            hint=f"remove it: the first range starts at {start} by itself",
        )
    starts = [start, *(end + 1 for end in ordered)]
    ends = [*ordered, UNBOUNDED]
    return tuple(Range(first, last) for first, last in zip(starts, ends, strict=True))
