"""Which compiled range serves this size; nothing else stands on the hot path."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from torch_piecewise.errors import ConfigError, DispatchError
from torch_piecewise.ranges import Range

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def serving_range(size: int, ranges: Sequence[Range], exact: Sequence[int] = ()) -> Range:
    """The range that serves ``size``: the exact size if there is one, else the range that contains it.

    Size 0 is served by a first range that begins at 1, where that holds more sizes than 1; else for itself.

    Raises:
        DispatchError: nothing serves it.
    """
    if size in exact:
        return Range(size, size)
    for candidate in ranges:
        if size in candidate or (size == 0 and _serves_zero(candidate)):
            return candidate
    if size == 0:
        return Range(0, 0)
    raise DispatchError(
        f"No compiled range serves size {size}",
        expected=f"a size in {', '.join(map(str, ranges)) or 'no range'}"
        + (f" or one of {', '.join(map(str, exact))}" if exact else ""),
        got=str(size),
        hint="add an endpoint to compile_ranges_endpoints, or the size to compile_sizes",
    )


def _serves_zero(part: Range) -> bool:
    # Code for size 1 alone would read and write a row that is not there.
    return part.start == 0 or (part.start == 1 and not part.is_single_size())


_LOOKED_AT = 4096
"""Sizes at the start of a range that are asked one by one whether a trace holds for them."""


def reachable(
    ranges: Sequence[Range], exact: Sequence[int], bounds: Range, admits: Callable[[int], bool]
) -> tuple[tuple[Range, ...], tuple[int, ...]]:
    """Those of the ranges and exact sizes that calls of one trace can have; no other has to be compiled.

    Where they can have size 0 only and none of the ranges serves it, 0 becomes an exact size.

    Args:
        ranges, exact: as for :func:`serving_range`.
        bounds: what the trace knows of the size.
        admits: whether the trace's other conditions hold for a size.
    """
    kept = tuple(one for one in ranges if _meets(one, bounds, admits))
    sizes = tuple(size for size in exact if size in bounds and admits(size))
    if not kept and not sizes and 0 in bounds and admits(0):
        sizes = (0,)
    return kept, sizes


def _meets(part: Range, bounds: Range, admits: Callable[[int], bool]) -> bool:
    first, last = max(0 if _serves_zero(part) else part.start, bounds.start), min(part.end, bounds.end)
    if first > last:
        return False
    low_end = range(first, min(first + _LOOKED_AT, last + 1))
    if any(admits(size) for size in low_end):
        return True
    # Nobody has asked the rest of a wider range: it is compiled.
    return low_end.stop <= last


def sizes_of(given: int | Iterable[int]) -> tuple[int, ...]:
    """Sizes of the dispatch dim that somebody asks to be made ready, as given; one alone counts too.

    Raises:
        ConfigError: something among them is no size.
    """
    several = isinstance(given, Iterable) and not isinstance(given, str)
    sizes: tuple[object, ...] = tuple(given) if several else (given,)  # type: ignore[arg-type]
    found = tuple(one for one in sizes if isinstance(one, int) and not isinstance(one, bool) and one >= 0)
    if len(found) < len(sizes):
        wrong = next(one for one in sizes if isinstance(one, bool) or one not in found)
        raise ConfigError(
            "warmup takes sizes",
            expected="integers >= 0, such as warmup([1, 2, 4])",
            got=repr(wrong),
        )
    return found


class SizeTable(Generic[Key, Value]):
    """A dict from sizes to what serves them, filled on demand and bounded.

    ``lookup`` is the dict's own ``get``: the hot path pays for one hash look-up.

    Args:
        resolve: called for a size that is not in the table yet.
        limit: how many sizes are remembered; beyond it the table starts anew.
    """

    def __init__(self, resolve: Callable[[Key], Value], limit: int = 4096) -> None:
        self._resolve = resolve
        self._limit = limit
        self._era = 0
        self._known: dict[Key, Value] = {}
        self.lookup = self._known.get

    def find(self, key: Key) -> Value:
        """What serves ``key``, resolved and remembered if it is new."""
        value = self._known.get(key)
        if value is None:
            era = self._era
            value = self._resolve(key)
            if len(self._known) >= self._limit:
                self._known.clear()
            if era == self._era:  # else what was resolved is already out of date
                self._known[key] = value
        return value

    def forget(self) -> None:
        """Resolve every size again from now on."""
        self._era += 1
        self._known.clear()

    def __len__(self) -> int:
        return len(self._known)
