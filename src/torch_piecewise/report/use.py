"""Which compiled ranges served the calls, and what padding cost."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

from torch_piecewise.dispatch import serving_range
from torch_piecewise.errors import DispatchError
from torch_piecewise.program import Sizes
from torch_piecewise.report.facts import RangeUse


def use_of(sizes: Sizes, counts: Mapping[int, int], captured: Sequence[int]) -> tuple[RangeUse, ...]:
    """Counted calls by range, every range listed, exact sizes last.

    Args:
        counts: size of the dispatch dim -> calls.
        captured: sizes that calls are padded to; empty where none are.
    """
    ranges = [*map(str, sizes.ranges), *(f"[{size}, {size}]" for size in sizes.exact)]
    found = {text: RangeUse(text) for text in ranges or ["any size"]}
    for size, calls in counts.items():
        text = _range_text(sizes, size)
        old = found.get(text, RangeUse(text))
        found[text] = RangeUse(
            text, old.calls + calls, old.sizes + size * calls, old.padded + _padded(size, captured) * calls
        )
    return tuple(found.values())


def _range_text(sizes: Sizes, size: int) -> str:
    if sizes.dispatch is None:
        return "any size"
    try:
        return str(serving_range(size, sizes.ranges, sizes.exact))
    except DispatchError:
        return "no range"


def _padded(size: int, captured: Sequence[int]) -> int:
    at = bisect.bisect_left(captured, size)
    return captured[at] if at < len(captured) else size
