"""The table of static graphs in a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.static_models import Rows, compiled
from torch_piecewise.report.files import from_json

pytestmark = pytest.mark.usefixtures("no_grad")


def test_each_size_is_told_with_what_served_it_and_what_it_took(tmp_path: Path) -> None:
    model, _, handle = compiled(Rows())
    model(torch.randn(3, 8))
    handle.warmup()
    for size in (3, 3, 4, 9):
        model(torch.randn(size, 8))
    path = tmp_path / "run.json"
    report = handle.report(path)
    told = [(one.size, one.padded_to, one.mode, one.count, one.why) for one in report.graphs]
    assert told == [
        (3, 4, "NONE", 1, "warming up"),
        (3, 4, "PIECEWISE", 2, ""),
        (4, 4, "PIECEWISE", 1, ""),
        (9, None, "NONE", 1, "no graph is meant for it"),
        (2, 2, "PIECEWISE", 0, ""),
        (8, 8, "PIECEWISE", 0, ""),
    ]
    for one in report.graphs:
        assert (one.bytes is None) == (one.seconds is None) == (one.mode == "NONE")
    assert sum(one.bytes or 0 for one in report.graphs if one.size in (2, 4, 8)) > 0
    assert from_json(json.loads(path.read_text())).graphs == report.graphs


def test_the_page_shows_the_table_where_there_is_one(tmp_path: Path) -> None:
    model, _, handle = compiled(Rows())
    model(torch.randn(9, 8))
    handle.report(tmp_path / "run.html")
    assert "<td>no graph is meant for it</td>" in (tmp_path / "run.html").read_text()

    model, _, handle = compiled(Rows(), cudagraph_mode="none")
    model(torch.randn(9, 8))
    handle.report(tmp_path / "none.html")
    assert "Static graphs" not in (tmp_path / "none.html").read_text()
