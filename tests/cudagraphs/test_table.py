"""The table of counts."""

from __future__ import annotations

from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs import ReplayTable, TableRow


def test_calls_served_alike_are_one_row():
    table = ReplayTable()
    for size in (3, 4, 3):
        table.count(size, 4, CUDAGraphMode.PIECEWISE)
    table.count(3, None, CUDAGraphMode.NONE, "not captured")
    assert table.rows() == (
        TableRow(3, None, CUDAGraphMode.NONE, 1, "not captured"),
        TableRow(3, 4, CUDAGraphMode.PIECEWISE, 2),
        TableRow(4, 4, CUDAGraphMode.PIECEWISE, 1),
    )
    table.clear()
    assert table.rows() == ()


def test_it_prints_as_columns():
    table = ReplayTable()
    table.count(3, 4, CUDAGraphMode.PIECEWISE)
    table.count(900, None, CUDAGraphMode.NONE, "no graph is meant for it")
    assert str(table).splitlines() == [
        "size  padded to  mode       count  why",
        "3     4          PIECEWISE  1",
        "900   -          NONE       1      no graph is meant for it",
    ]
