"""Static graphs in a long life: weights that change, captures that fail, warm-ups that say what they did."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from tests.static_models import Rows, compiled, table
from torch_piecewise.errors import GuardError, StaticGraphError
from torch_piecewise.testing import GraphRecorder

pytestmark = pytest.mark.usefixtures("no_grad")


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor, flag: bool = True) -> Tensor:
        return x @ self.weight if flag else x * 2


FULL: dict[str, Any] = {
    "cudagraph_mode": "full",
    "splitting_ops": [],
    "dynamic_arg_dims": {"x": 0},
    "cudagraph_capture_sizes": [4, 8],
}


def line(**fields: Any) -> tuple[Any, Any]:
    model, _, handle = compiled(Line(), **{**FULL, **fields})
    return model, handle


def swap(model: Any) -> None:
    model.weight.data = torch.randn(4, 4)


def sizes(handle: Any) -> list[int]:
    return [key.descriptor.num_tokens for key in handle.static_graphs.captured()]


def served(model: Any) -> None:
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x), x @ model.weight)


def test_weights_swapped_now_and_then_stay_captured_however_often() -> None:
    model, handle = line(cudagraph_num_of_warmups=0)
    for _ in range(12):
        swap(model)
        for _ in range(9):
            served(model)
    assert handle.counters["calls_without_graphs"] == 0


def test_weights_that_change_again_and_again_end_captures_until_a_warmup_and_the_reason_names_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, handle = line(cudagraph_num_of_warmups=0)
    for _ in range(12):
        swap(model)
        served(model)
    assert table(handle)[-1][4] == "its memory changes from call to call: weight"
    assert sum("weight comes in other memory again" in one.message for one in caplog.records) == 1
    handle.warmup()
    with handle.counters.expect(calls_replayed=1):
        served(model)


@pytest.mark.parametrize("only", [True, False])
def test_a_warmup_right_after_a_swap_captures_the_new_weights(only: bool) -> None:
    model, handle = line(capture_only_in_warmup=only)
    served(model)
    for _ in range(12):
        swap(model)
        report = handle.warmup()
        assert report is not None and report.captured == 2
        with handle.counters.expect(calls_replayed=1, sizes_captured=0):
            served(model)


def test_a_warmup_beyond_the_ladder_captures_again_what_it_drops() -> None:
    _, handle = (pair := line())
    served(pair[0])
    handle.warmup()
    with handle.counters.expect(sizes_dropped=2, sizes_captured=3):
        handle.warmup([32])
    assert sizes(handle) == [32, 8, 4]


def test_a_warmup_captures_every_trace_and_the_table_tells_them_apart() -> None:
    model, handle = line()
    x = torch.randn(3, 4)
    model(x)
    model(x, False)
    report = handle.warmup()
    assert report is not None and report.captured == 4
    with handle.counters.expect(calls_replayed=2):
        served(model)
        assert torch.equal(model(x, False), x * 2)
    rows = handle.static_graphs.table().rows()
    assert sorted(row.trace for row in rows if row.mode) == [1, 2]
    assert str(handle.static_graphs.table()).startswith("trace  size")


class NoMemory(GraphRecorder):
    """Fails at captures while told to."""

    fails = True

    def capture(self, *, collect: bool = False) -> Any:
        if NoMemory.fails:
            raise torch.OutOfMemoryError("3 GiB are missing")
        return super().capture(collect=collect)


@pytest.mark.parametrize("mode", ["full", "piecewise", "full_and_piecewise"])
def test_a_capture_that_fails_is_one_warning_and_the_calls_run_compiled(
    mode: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{__name__}.NoMemory"
    model, reference, handle = compiled(Rows(), cudagraph_mode=mode, static_graph_class=name)
    x = torch.randn(4, 8)
    for _ in range(4):
        torch.testing.assert_close(model(x), reference(x))
    why = "capture failed: OutOfMemoryError: 3 GiB are missing"
    assert (4, None, "NONE", 3, why) in table(handle)
    assert sum(why in one.message for one in caplog.records) == 1
    with pytest.raises(StaticGraphError, match=why):
        handle.warmup()
    torch.testing.assert_close(model(x), reference(x))
    monkeypatch.setattr(NoMemory, "fails", False)
    handle.warmup()
    with handle.counters.expect(calls_replayed=1):
        torch.testing.assert_close(model(x), reference(x))


def test_a_budget_too_small_for_the_largest_size_keeps_the_others() -> None:
    model, handle = line(cudagraph_memory_budget=200, cudagraph_capture_sizes=[2, 4, 8, 64])
    served(model)
    report = handle.warmup()
    assert report is not None and (report.captured, report.refused) == (3, 1)
    assert sizes(handle) == [8, 4, 2]
    assert 0 < report.bytes_used <= 200


def test_a_warmup_before_the_background_is_done_says_how_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, handle = line(on_miss="background", disable_cache=False, cache_dir=str(tmp_path))
    may_go = threading.Event()
    handle._serving.background.add(lambda: may_go.wait(60) and None)
    served(model)
    with pytest.raises(GuardError, match=r"still being traced in the background(.|\n)*wait\(\)"):
        handle.warmup()
    assert handle.wait(0.01) is False
    may_go.set()
    assert handle.wait(60) is True
    report = handle.warmup()
    assert report is not None and report.captured == 2
    with handle.counters.expect(calls_replayed=1):
        served(model)


def test_a_warmup_with_on_miss_eager_is_a_warning(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    model, handle = line(on_miss="eager", disable_cache=False, cache_dir=str(tmp_path))
    served(model)
    assert handle.warmup() is None
    assert [one.message for one in caplog.records if "nothing to do: on_miss='eager'" in one.message]


def test_sizes_that_no_decode_batch_has_are_named(caplog: pytest.LogCaptureFixture) -> None:
    line(cudagraph_mode="full_decode_only", cudagraph_tokens_per_request=2, cudagraph_capture_sizes=[4, 8, 5])
    assert "cudagraph_capture_sizes [5] are not captured" in caplog.text


def test_reasons_speak_of_the_users_names() -> None:
    run = tp.compile(
        lambda x: x * 2,
        **{**FULL, "dynamic_arg_dims": {"x": [0, 1]}},
        backend="eager",
        disable_cache=True,
        static_graph_class="torch_piecewise.testing.GraphRecorder",
        cudagraph_num_of_warmups=0,
    )
    handle = tp.program_of(run)
    for width in (5, 6):
        run(torch.randn(3, width))
    assert (3, None, "NONE", 1, "x dim 1 is 6, captured with 5") in table(handle)
    with tp.forward_context(*handle.dispatch(tp.BatchDescriptor(4))):
        run(torch.randn(7, 5))
    assert (7, None, "NONE", 1, "forward_context says 4 tokens, the call has 7") in table(handle)
    handle.restore()
    with pytest.raises(GuardError, match="The model was restored"):
        handle.warmup()


@pytest.mark.parametrize(
    ("fields", "reason", "calls"),
    [
        ({"cudagraph_mode": "none"}, "cudagraph_mode='none'", 0),
        ({"static_graph_class": None}, "the model works on cpu", 2),
    ],
)
def test_where_nothing_is_captured_the_handle_says_why(
    fields: Any, reason: str, calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, handle = line(**fields)
    served(model)
    served(model)
    graphs = handle.static_graphs
    assert (graphs.captured(), graphs.table().rows()) == ((), ())
    assert reason in graphs.reason
    assert graphs.counts() == {"calls_replayed": 0, "calls_without_graphs": calls}
    with caplog.at_level(logging.WARNING, "torch_piecewise"):
        assert handle.warmup() is None
    assert f"warmup() captured nothing: {graphs.reason}" in caplog.text
