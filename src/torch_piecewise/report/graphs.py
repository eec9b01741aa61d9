"""Static graphs in a report: what served which size, and what that took to capture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch_piecewise.cudagraphs import SizeCaptured, TableRow
from torch_piecewise.events.recorder import Recorded
from torch_piecewise.report.facts import GraphUse

_Key = tuple[str, int]
"""Mode and captured size."""


def graph_uses(served: Sequence[TableRow], recorded: Sequence[Recorded]) -> tuple[GraphUse, ...]:
    """One row for calls that were served alike, by size; then sizes that were captured and not called.

    Args:
        served: counts of calls.
        recorded: events of the run; what a size took is what its last capture took.
    """
    captures: dict[_Key, SizeCaptured] = {}
    for one in recorded:
        if isinstance(one.event, SizeCaptured):
            captures[one.event.mode.name, one.event.descriptor.num_tokens] = one.event
    used = {(row.mode.name, row.padded_to) for row in served}
    rows = [_row(row, captures.get((row.mode.name, row.padded_to or 0))) for row in served]
    return (*rows, *(row for row in _unused(captures) if (row.mode, row.padded_to) not in used))


def _row(row: TableRow, capture: SizeCaptured | None) -> GraphUse:
    return GraphUse(
        size=row.size,
        padded_to=row.padded_to,
        mode=row.mode.name,
        count=row.count,
        why=row.why,
        bytes=capture.memory if capture else None,
        seconds=capture.seconds if capture else None,
    )


def _unused(captures: dict[_Key, SizeCaptured]) -> Iterator[GraphUse]:
    for (mode, size), capture in sorted(captures.items()):
        yield GraphUse(size, size, mode, 0, "", capture.memory, capture.seconds)
