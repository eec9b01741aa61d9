"""Each distinct piece's time against eager's, and what becomes of slow ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from tests.graphs import Stack
from torch_piecewise.ranges import Range

pytestmark = pytest.mark.usefixtures("no_grad")


def ids(size: int) -> Tensor:
    return torch.randint(0, 50, (size,))


def handle_of(**fields: Any) -> Any:
    model = Stack(3).eval()
    settings = {
        "backend": "tests.trials.compilers.slow_last",
        "splitting_ops": ["tests::attention"],
        "dynamic_arg_dims": {"ids": 0},
        "compile_ranges_endpoints": [8],
        "disable_cache": True,
    } | fields
    tp.compile(model, **settings)
    model(ids(5))
    return model, tp.program_of(model)


def test_each_distinct_piece_is_measured_once_with_how_often_it_runs() -> None:
    _model, handle = handle_of()
    found = handle.profile(ids(5), rounds=3)
    assert [(one.piece, one.times) for one in found.pieces] == [
        ("submod_0", 1),
        ("submod_2", 2),
        ("submod_6", 1),
    ]
    assert all(one.range == Range(1, 8) and one.size == 5 for one in found.pieces)
    assert all(one.compiled > 0 and one.eager > 0 for one in found.pieces)


def test_a_slow_piece_is_found_slow() -> None:
    _model, handle = handle_of()
    first, *_, last = handle.profile(ids(5), rounds=5).pieces
    assert last.compiled >= 0.02
    assert last.is_slow
    assert last.speedup < 0.5
    assert "speedup" in str(handle.profile(ids(5), rounds=1))
    del first


def test_a_slow_piece_is_kept_unless_told_otherwise() -> None:
    _model, handle = handle_of()
    with handle.counters.expect(pieces_kept_eager=0):
        handle.profile(ids(5), rounds=3)
    assert handle.profile(ids(5), rounds=3).pieces[-1].compiled >= 0.02


def test_a_slow_piece_runs_eagerly_from_then_on_for_the_range_it_was_slow_for() -> None:
    model, handle = handle_of(on_slow_piece="eager")
    expected = [model(ids_) for ids_ in (torch.arange(5), torch.arange(20))]
    handle.profile(ids(5), rounds=5)
    again = {one.piece: one for one in handle.profile([ids(5), ids(20)], rounds=3).pieces if one.size == 5}
    assert again["submod_6"].runs_eagerly
    assert again["submod_6"].compiled < 0.02
    assert not again["submod_6"].is_slow
    stay_eager = handle.report().programs[0].eager
    assert "submod_6" in stay_eager
    assert handle.stats.eager_pieces == len(stay_eager)
    other = next(one for one in handle.profile(ids(20), rounds=1).pieces if one.piece == "submod_6")
    assert other.runs_eagerly, "the second profile above measured it for the other range too"
    for before, size in zip(expected, (5, 20), strict=True):
        assert torch.equal(model(torch.arange(size)), before)


def test_another_range_than_the_measured_one_stays_compiled() -> None:
    _model, handle = handle_of(on_slow_piece="eager")
    handle.profile(ids(5), rounds=5)
    program = handle.entries[0].program
    ready = program.chosen(20)[1]["submod_6"]
    assert ready.artifact is not None
    assert program.chosen(5)[1]["submod_6"].artifact is None


def test_measuring_leaves_the_model_as_one_call_does() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

        def forward(self, ids: Tensor) -> Tensor:
            self.seen.add_(1)
            return ids[self.seen.clamp(max=0) :] + self.seen

    model = Counting()
    tp.compile(model, backend="eager", dynamic_arg_dims={"ids": 0}, disable_cache=True)
    model(ids(5))
    tp.program_of(model).profile(ids(5), rounds=4)
    assert int(model.seen) == 2


def test_the_report_shows_what_was_measured() -> None:
    _model, handle = handle_of(on_slow_piece="eager")
    handle.profile([ids(5), ids(20)], rounds=3)
    last = handle.report().programs[0].kinds[-1]
    assert [(one.range, one.size, one.kept_eager) for one in last.timed] == [
        ("[1, 8]", "5", True),
        ("[9, inf]", "20", True),
    ]
    assert [moment.what for moment in handle.report().moments].count("stays eager") >= 2
