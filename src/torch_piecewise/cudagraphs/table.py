"""How often which size was served by what."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from torch_piecewise.cudagraph_mode import CUDAGraphMode


@dataclass(frozen=True, slots=True)
class TableRow:
    """Calls that were served alike.

    Attributes:
        size: size of the call.
        padded_to: size of the graph that served it; None where none did.
        mode: ``FULL`` or ``PIECEWISE`` where a graph served it, else ``NONE``.
        count: how many such calls.
        why: for ``NONE``, why no graph served it; else empty.
        trace: which trace of a compiled callable it was, 1 for the first; 0 where nobody said.
    """

    size: int
    padded_to: int | None
    mode: CUDAGraphMode
    count: int
    why: str = ""
    trace: int = 0


class ReplayTable:
    """Counts calls. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[int, int | None, CUDAGraphMode, str, int], int] = {}

    def count(
        self,
        size: int,
        padded_to: int | None,
        mode: CUDAGraphMode,
        why: str = "",
        times: int = 1,
        trace: int = 0,
    ) -> None:
        """One more call of ``size``, or several."""
        key = (size, padded_to, mode, why, trace)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + times

    def rows(self) -> tuple[TableRow, ...]:
        """All rows, by size, then by mode."""
        with self._lock:
            counts = dict(self._counts)
        ordered = sorted(counts, key=lambda key: (key[0], key[2].name, key[1] or 0, key[3], key[4]))
        return tuple(
            TableRow(size, padded, mode, counts[size, padded, mode, why, trace], why, trace)
            for size, padded, mode, why, trace in ordered
        )

    def clear(self) -> None:
        """Start again from nothing."""
        with self._lock:
            self._counts.clear()

    def __str__(self) -> str:
        rows = self.rows()
        several = len({row.trace for row in rows}) > 1
        head = (*(("trace",) if several else ()), "size", "padded to", "mode", "count", "why")
        body = [
            (
                *((str(row.trace),) if several else ()),
                *(str(row.size), str(row.padded_to or "-"), str(row.mode), str(row.count), row.why),
            )
            for row in rows
        ]
        widths = [max(len(cells[i]) for cells in (head, *body)) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
            for cells in (head, *body)
        ]
        return "\n".join(lines)
