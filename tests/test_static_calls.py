"""Static graphs through tp.compile, on the recorder that needs no GPU."""

from __future__ import annotations

import copy
import logging
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from tests.static_models import CALLS, SETTINGS, Rows, compiled, table
from torch_piecewise.cudagraphs import (
    CaptureRefused,
    OutputPolicy,
    SizeCaptured,
    SizeEvicted,
    capture_phase,
)
from torch_piecewise.errors import ConfigError, StaticGraphError
from torch_piecewise.testing import GraphRecorder

pytestmark = pytest.mark.usefixtures("no_grad")

PIECEWISE, FULL, NONE = tp.CUDAGraphMode.PIECEWISE, tp.CUDAGraphMode.FULL, tp.CUDAGraphMode.NONE


def rows(count: int, width: int = 8) -> Tensor:
    return torch.randn(count, width)


def same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected)


# -- what is captured, and how calls are served


def test_warmup_captures_largest_first_and_calls_are_padded_replayed_and_cut_back() -> None:
    model, reference, handle = compiled(Rows())
    model(rows(3))
    captured: list[int] = []
    handle.bus.add(
        lambda event: (
            captured.append(event.descriptor.num_tokens) if isinstance(event, SizeCaptured) else None
        )
    )
    with handle.counters.expect(sizes_captured=3, static_graphs=9, graphs_captured=0):
        report = handle.warmup()
    assert captured == [8, 4, 2]
    assert report is not None and report.captured == 3
    with handle.counters.expect(calls_replayed=5, sizes_captured=0):
        for size in (1, 2, 3, 5, 8):
            x = rows(size)
            same(model(x), reference(x))
    assert table(handle)[-5:] == [
        (2, 2, "PIECEWISE", 1, ""),
        (3, 4, "NONE", 1, "warming up"),
        (3, 4, "PIECEWISE", 1, ""),
        (5, 8, "PIECEWISE", 1, ""),
        (8, 8, "PIECEWISE", 1, ""),
    ]


def test_a_size_that_was_captured_exactly_gives_the_compiled_results_bit_for_bit() -> None:
    model, reference, handle = compiled(Rows())
    model(rows(4))
    handle.warmup()
    for _ in range(3):
        x = rows(4)
        assert torch.equal(model(x), reference(x))


def test_sizes_beyond_the_largest_run_compiled_and_the_table_says_so() -> None:
    model, reference, handle = compiled(Rows())
    for _ in range(2):
        x = rows(9)
        assert torch.equal(model(x), reference(x))
    assert table(handle) == [(9, None, "NONE", 2, "no graph is meant for it")]


def test_after_capture_a_call_is_replays_and_cut_bodies_and_nothing_else() -> None:
    model, _reference, handle = compiled(Rows(depth=3))
    model(rows(4))
    handle.warmup([4])
    (recorder,) = handle.static_graphs.backends
    recorder.replays, CALLS.count = 0, 0
    runs = count_piece_runs(handle)
    model(rows(4))
    assert (recorder.replays, CALLS.count, runs) == (4, 3, [])


def count_piece_runs(handle: Any) -> list[int]:
    """Grows with each straight line that is looked up for a call, captured or not."""
    program, runs = handle.entries[0].program, []
    find = program.capture_table.find
    program.capture_table.find = lambda key: runs.append(key) or find(key)
    return runs


def test_full_mode_makes_one_graph_of_a_call_with_the_cuts_in_it() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_mode="full")
    model(rows(4))
    with handle.counters.expect(sizes_captured=3, static_graphs=3):
        handle.warmup()
    CALLS.count = 0
    x = rows(3)
    same(model(x), reference(x))
    assert CALLS.count == 2  # by the reference


def test_without_cuts_a_full_graph_is_captured_of_what_is_traced_once() -> None:
    model, reference, handle = compiled(
        torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()),
        cudagraph_mode="full",
        mode="trace_once",
        splitting_ops=None,
        dynamic_arg_dims={"input": 0},
    )
    model(rows(2, 4))
    handle.warmup()
    x = rows(3, 4)
    same(model(x), reference(x))
    assert table(handle)[-1][1:3] == (4, "FULL")


def test_a_model_whose_sizes_are_fixed_is_captured_whole() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_mode="full", dynamic_arg_dims={})
    for _ in range(3):
        x = rows(5)
        assert torch.equal(model(x), reference(x))
    assert table(handle) == [(1, 1, "FULL", 2, ""), (1, 1, "NONE", 1, "warming up")]


def test_calls_capture_by_themselves_unless_capture_is_kept_to_warmup() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_num_of_warmups=2)
    for _ in range(4):
        x = rows(3)
        same(model(x), reference(x))
    assert table(handle) == [(3, 4, "NONE", 2, "warming up"), (3, 4, "PIECEWISE", 2, "")]
    model, reference, handle = compiled(Rows(), capture_only_in_warmup=True)
    for _ in range(4):
        model(rows(3))
    assert table(handle) == [(3, None, "NONE", 4, "not captured")]
    with capture_phase():
        model(rows(3))
    assert [key.descriptor.num_tokens for key in handle.static_graphs.captured()] == [4]


def test_sizes_can_be_captured_between_calls() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_capture="between_calls")
    model(rows(3))
    model(rows(7))
    assert handle.static_graphs.captured() == ()
    assert handle.static_graphs.capture_pending() == 2
    x = rows(3)
    same(model(x), reference(x))
    assert table(handle)[-2:] == [(3, 4, "PIECEWISE", 1, ""), (7, None, "NONE", 1, "not captured")]


def test_warmup_can_name_sizes_that_the_settings_do_not() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_capture_sizes=[2], max_cudagraph_capture_size=16)
    model(rows(2))
    handle.warmup([12, 300])
    x = rows(11)
    same(model(x), reference(x))
    assert (11, 12, "PIECEWISE", 1, "") in table(handle)
    assert [key.descriptor.num_tokens for key in handle.static_graphs.captured()] == [12]


def test_ranges_and_exact_sizes_are_served_by_their_own_code_when_captured() -> None:
    model, reference, handle = compiled(
        Rows(), compile_ranges_endpoints=[4], compile_sizes=["cudagraph_capture_sizes"]
    )
    model(rows(3))
    handle.warmup()
    for size in (1, 4, 5, 20):
        x = rows(size)
        same(model(x), reference(x))


# -- contexts, kinds of batches


def test_uniform_decode_replays_one_graph_and_mixed_batches_the_pieces() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_mode="full_and_piecewise")
    model(rows(4))
    handle.warmup([4])
    batches = [
        tp.BatchDescriptor(3),
        tp.BatchDescriptor(3, num_reqs=3, uniform=True),
    ]
    for batch in batches:
        with tp.forward_context(*handle.dispatch(batch)):
            x = rows(3)
            same(model(x), reference(x))
    assert [row for row in table(handle) if row[0] == 3] == [
        (3, 4, "FULL", 1, ""),
        (3, 4, "PIECEWISE", 1, ""),
    ]


def test_what_a_uniform_batch_is_can_be_told_without_a_context() -> None:
    seen: list[str] = []

    def is_decode(arguments: dict[str, Tensor]) -> bool:
        seen.extend(arguments)
        return arguments["x"].shape[0] <= 2

    model, reference, handle = compiled(
        Rows(), cudagraph_mode="full_decode_only", cudagraph_uniform_when=is_decode
    )
    model(rows(2))
    handle.warmup()
    for size in (1, 4):
        x = rows(size)
        same(model(x), reference(x))
    assert set(seen) == {"x"}
    assert table(handle) == [
        (1, 2, "FULL", 1, ""),
        (2, 2, "NONE", 1, "warming up"),
        (4, None, "NONE", 1, "no graph is meant for it"),
    ]


def test_a_context_of_another_mode_runs_compiled_code() -> None:
    model, reference, handle = compiled(Rows())
    model(rows(4))
    handle.warmup()
    for mode in (NONE, FULL):
        with tp.forward_context(mode, tp.BatchDescriptor(4)):
            x = rows(4)
            assert torch.equal(model(x), reference(x))
    assert (4, None, "NONE", 2, "no graph is meant for it") in table(handle)


def test_numbers_of_adapters_have_captures_of_their_own() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_lora_counts=[0, 2], cudagraph_capture_sizes=[4])
    model(rows(4))
    with handle.counters.expect(sizes_captured=2):
        handle.warmup()
    decision = handle.dispatch(tp.BatchDescriptor(3, has_lora=True, num_active_loras=1))
    assert decision.descriptor.num_active_loras == 2
    with tp.forward_context(*decision), handle.counters.expect(calls_replayed=1, sizes_captured=0):
        x = rows(3)
        same(model(x), reference(x))


def test_a_full_graph_outside_swallows_the_pieces_inside() -> None:
    model, reference, handle = compiled(Rows())
    model(rows(4))
    recorder = GraphRecorder()
    whole = tp.CUDAGraphWrapper(model, FULL, pool=recorder)
    x = rows(4)
    with tp.forward_context(FULL, tp.BatchDescriptor(4)):
        whole(x)
        CALLS.count = recorder.replays = 0
        x.copy_(rows(4))
        same(whole(x), reference(x))
    assert recorder.replays == 1
    assert CALLS.count == 2  # by the reference
    assert handle.counters["sizes_captured"] == 0


def test_a_draft_model_has_a_pool_of_its_own_and_its_calls_come_in_between() -> None:
    target, target_reference, first = compiled(Rows())
    draft, draft_reference, second = compiled(Rows(depth=1))
    for model, handle in ((target, first), (draft, second)):
        model(rows(2))
        handle.warmup()
    assert first.static_graphs.backends != second.static_graphs.backends
    with (
        first.counters.expect(calls_replayed=2),
        second.counters.expect(calls_replayed=4),
    ):
        for size in (3, 8):
            proposals = [rows(size), rows(size)]
            drafted = [draft(x) for x in proposals]
            x = rows(size)
            same(target(x), target_reference(x))
            same(drafted, [draft_reference(x) for x in proposals])


class Activated(torch.nn.Module):
    """Two cuts with nothing between them, which return tensors, as collectives do."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.sigmoid(x * 2)) + 1


def test_cuts_that_follow_each_other_are_one_eager_step_and_may_return_tensors() -> None:
    model, reference, handle = compiled(
        Activated(),
        splitting_ops=["torch.sigmoid", "torch.tanh"],
        dynamic_arg_dims={"x": 0},
        cudagraph_num_of_warmups=0,
    )
    with handle.counters.expect(sizes_captured=1, static_graphs=2, calls_replayed=3):
        for _ in range(3):
            x = rows(3)
            same(model(x), reference(x))


# -- results


def test_results_kept_over_later_calls_are_not_overwritten() -> None:
    model, reference, _handle = compiled(Rows(), cudagraph_num_of_warmups=0)
    inputs = [rows(size) for size in (4, 4, 2, 3, 4, 8, 1)]
    kept = [model(x) for x in inputs]
    for x, y in zip(inputs, kept, strict=True):
        same(y, reference(x))


def test_results_still_held_are_refused_when_that_was_asked_for() -> None:
    model, reference, _handle = compiled(Rows(), cudagraph_outputs="refuse", cudagraph_num_of_warmups=0)
    x = rows(4)
    kept = model(x)
    with pytest.raises(StaticGraphError, match="still held"):
        model(rows(2))
    same(kept, reference(x))
    del kept
    same(model(x[:2]), reference(x[:2]))
    assert OutputPolicy("refuse") is OutputPolicy.REFUSE


class Structured(torch.nn.Module):
    def forward(self, x: Tensor, scale: float = 2.0) -> dict[str, Any]:
        y = torch.sin(x) * scale
        return {"y": y, "rows": y.shape[0], "again": [y.cos(), None, "text"]}


def test_structures_numbers_and_none_come_back_as_the_model_gives_them() -> None:
    model, reference, _handle = compiled(Structured(), cudagraph_mode="full", cudagraph_num_of_warmups=0)
    for size in (3, 4, 3, 1):
        x = rows(size)
        got, expected = model(x), reference(x)
        assert got.keys() == expected.keys()
        assert (got["rows"], got["again"][1:]) == (size, [None, "text"])
        same((got["y"], got["again"][0]), (expected["y"], expected["again"][0]))


# -- inputs


class Columns(torch.nn.Module):
    """The dim that changes is the second; a second tensor comes by keyword."""

    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        out = torch.empty_like(x)
        from tests.static_models import mix_heads

        mix_heads(x, x * 2, x + 1, out)
        return out * mask


def test_a_dim_that_is_not_the_first_and_tensors_by_keyword() -> None:
    model, _reference, handle = compiled(
        Columns(), dynamic_arg_dims={"x": {1: "n"}, "mask": {1: "n"}}, cudagraph_num_of_warmups=0
    )
    for size in (3, 4, 1, 3, 7):
        x, mask = torch.randn(2, size), torch.randn(1, size)
        same(model(x, mask=mask), (torch.sigmoid(x) * x * 2 + x + 1) * mask)
    assert {row[2] for row in table(handle)} == {"PIECEWISE"}


def test_buffers_grow_when_another_dim_does_and_stale_captures_go() -> None:
    model, _reference, handle = compiled(
        Columns(),
        dynamic_arg_dims={"x": {1: "n", 0: "b"}, "mask": {1: "n"}},
        dispatch_on="x.1",
        cudagraph_num_of_warmups=0,
    )
    for batch, size in ((2, 3), (2, 4), (5, 4), (2, 3)):
        x, mask = torch.randn(batch, size), torch.randn(1, size)
        same(model(x, mask=mask), (torch.sigmoid(x) * x * 2 + x + 1) * mask)
    assert [row[2:4] for row in table(handle)] == [("PIECEWISE", 2), ("NONE", 1), ("PIECEWISE", 1)]
    assert handle.static_graphs.captured()[0].descriptor.num_tokens == 4


def test_buffers_grow_for_a_larger_size_and_what_was_captured_on_the_old_ones_goes() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_num_of_warmups=0, cudagraph_capture_sizes=[2])
    model(rows(2))
    handle.warmup([12])
    for size in (2, 12, 2, 7):
        x = rows(size)
        same(model(x), reference(x))
    assert handle.counters["sizes_captured"] == 3
    assert {row[2] for row in table(handle)} == {"PIECEWISE"}


def test_a_larger_size_after_smaller_ones_does_not_spoil_them() -> None:
    model, reference, _handle = compiled(Rows(), cudagraph_num_of_warmups=0)
    for size in (2, 8, 2, 4, 8):
        x = rows(size)
        same(model(x), reference(x))


class Cached(torch.nn.Module):
    """Adds to a buffer of its own and to a tensor of the caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor, total: Tensor) -> Tensor:
        self.seen.add_(1)
        total.add_(2)
        return x + self.seen + total


def test_buffers_and_tensors_that_the_model_writes_are_written_in_place_once_a_call() -> None:
    model, _reference, handle = compiled(
        Cached(), cudagraph_mode="full", dynamic_arg_dims={"x": 0}, cudagraph_capture_sizes=[3]
    )
    total = torch.zeros(4)
    for turn in range(1, 6):
        x = torch.randn(3, 4)
        same(model(x, total), x + 3 * turn)
        assert model.seen.tolist() == [turn] * 4
        assert total.tolist() == [2 * turn] * 4
    assert table(handle)[0] == (3, 3, "FULL", 4, "")


def test_an_input_that_the_model_changes_is_changed_for_the_caller() -> None:
    def step(x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2

    run = tp.compile(
        step,
        backend="eager",
        cudagraph_mode="full",
        disable_cache=True,
        cudagraph_capture_sizes=[4],
        static_graph_class="torch_piecewise.testing.GraphRecorder",
    )
    for size in (4, 4, 3, 3):
        x = torch.randn(size)
        before = x.clone()
        same(run(x), (before + 1) * 2)
        same(x, before + 1)
    assert tp.program_of(run).counters["calls_replayed"] == 3


def test_inputs_are_not_copied_where_the_caller_keeps_them_in_place() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_copy_inputs=False, cudagraph_num_of_warmups=0)
    buffer = rows(4)
    for _ in range(3):
        buffer.copy_(rows(4))
        same(model(buffer), reference(buffer))
    x = rows(4)
    assert torch.equal(model(x), reference(x))
    assert table(handle) == [
        (4, None, "NONE", 1, "x is not the captured one"),
        (4, 4, "PIECEWISE", 3, ""),
    ]


def test_inputs_with_gaps_run_compiled() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_num_of_warmups=0)
    x = torch.randn(4, 16)[:, ::2]
    for _ in range(2):
        same(model(x), reference(x))
    assert "has gaps in memory" in table(handle)[0][4]


def test_padding_is_filled_with_what_an_argument_is_padded_with() -> None:
    stored = torch.full((6,), 9.0)

    def step(x: Tensor, slots: Tensor, cache: Tensor) -> Tensor:
        out = torch.empty_like(x)
        keep_rows(x, slots, cache, out)
        return out

    run = tp.compile(
        step,
        backend="eager",
        disable_cache=True,
        splitting_ops=["tests::keep_rows"],
        dynamic_arg_dims={"x": {0: "n"}, "slots": {0: "n"}},
        cudagraph_mode="piecewise",
        cudagraph_capture_sizes=[4],
        cudagraph_pad_values={"slots": -1},
        static_graph_class="torch_piecewise.testing.GraphRecorder",
    )
    for turn in (1.0, 2.0, 3.0):
        run(torch.full((2,), turn), torch.tensor([1, 3]), stored)
        assert stored.tolist() == [9, turn, 9, turn, 9, 9]


@tp.splitting_op("tests::keep_rows", mutates_args=("cache", "out"))
def keep_rows(x: Tensor, slots: Tensor, cache: Tensor, out: Tensor) -> None:
    """Write rows to their slots; a negative slot means nowhere."""
    for row, slot in zip(x.tolist(), slots.tolist(), strict=True):
        if slot >= 0:
            cache[slot] = row
    out.copy_(x)


def test_small_tensors_beside_a_cache_are_copied_and_the_cache_stays_the_callers() -> None:
    def step(x: Tensor, past: Tensor, cache: Tensor) -> Tensor:
        out = torch.empty_like(x)
        append_rows(x, past, cache, out)
        return out + past

    run = tp.compile(
        step,
        dynamic_arg_dims={"x": 0},
        splitting_ops=["tests::append_rows"],
        **{
            name: SETTINGS[name]
            for name in ("backend", "disable_cache", "static_graph_class", "cudagraph_mode")
        },
        cudagraph_capture_sizes=[1, 2],
        cudagraph_num_of_warmups=0,
    )
    cache, written = torch.zeros(8), []
    for past, size in ((0, 2), (2, 1), (3, 2), (5, 1), (6, 1)):
        x = torch.randn(size)
        written += x.tolist()
        same(run(x, torch.tensor([past]), cache), x + past)
        same(cache[: len(written)], torch.tensor(written))
    counters = tp.program_of(run).counters
    assert (counters["sizes_captured"], counters["calls_replayed"]) == (2, 5)


@tp.splitting_op("tests::append_rows", mutates_args=("cache", "out"))
def append_rows(x: Tensor, past: Tensor, cache: Tensor, out: Tensor) -> None:
    """Write rows behind those that are there."""
    start = int(past.item())
    cache[start : start + x.shape[0]] = x
    out.copy_(x)


@pytest.mark.slow
@pytest.mark.inductor
def test_pieces_compiled_by_inductor_are_captured_and_replayed() -> None:
    model, reference, handle = compiled(
        Rows(depth=1), backend="inductor", cudagraph_mode="full_and_piecewise", compile_threads=1
    )
    model(rows(3))
    handle.warmup()
    with handle.counters.expect(calls_replayed=4):
        for size in (1, 3, 4, 8):
            x = rows(size)
            same(model(x), reference(x))


@pytest.mark.parametrize("called_in", [torch.no_grad, torch.inference_mode])
def test_captures_and_replays_work_in_inference_mode_and_without_gradients(called_in: Any) -> None:
    with called_in():
        model, reference, handle = compiled(Rows(), cudagraph_capture_sizes=[4])
        for _ in range(4):
            x = rows(3)
            same(model(x), reference(x))
    assert handle.counters["calls_replayed"] == 3


def test_warmup_runs_under_the_autocast_that_the_calls_came_under() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_capture_sizes=[4], capture_only_in_warmup=True)
    with torch.autocast("cpu", torch.bfloat16):
        model(rows(4))
    handle.warmup()
    with torch.autocast("cpu", torch.bfloat16), handle.counters.expect(calls_replayed=1):
        x = rows(4)
        same(model(x), reference(x))


# -- a start from the store


def test_a_start_from_the_store_captures_without_a_trace(tmp_path: Path) -> None:
    settings = {
        "backend": "tests.kept_compiler.KeptEager",
        "cache_dir": str(tmp_path),
        "disable_cache": False,
        "cudagraph_mode": "full_and_piecewise",
        "cudagraph_pad_values": {"x": 1.0},
    }
    for traces in (1, 0):
        model, reference, handle = compiled(Rows(), **settings)
        model(rows(3))
        handle.warmup()
        for size in (1, 3, 8, 9):
            x = rows(size)
            same(model(x), reference(x))
        assert handle.counters["graphs_captured"] == traces
        assert handle.counters["sizes_captured"] == 6
        assert handle.counters["calls_replayed"] == 3


# -- weights


def test_a_replaced_weight_is_captured_anew_and_never_read_again() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_num_of_warmups=0)
    model(rows(4))
    for factor in (3.0, 5.0):
        for one in (model, reference):
            one.layers[0].qkv.weight = torch.nn.Parameter(torch.full((24, 8), factor))
        for _ in range(2):
            x = rows(4)
            same(model(x), reference(x))
    assert handle.counters["calls_replayed"] == 5
    assert handle.counters["sizes_captured"] == 3
    assert handle.counters["graphs_captured"] == 1


def test_a_weight_whose_memory_was_swapped_is_captured_anew() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_num_of_warmups=0)
    model(rows(4))
    with handle.counters.expect(sizes_captured=1, calls_replayed=1):
        for one in (model, reference):
            one.norm.weight.data = torch.linspace(1, 2, 8)
        x = rows(4)
        same(model(x), reference(x))


def test_values_of_a_weight_may_change_in_place() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_num_of_warmups=0)
    model(rows(4))
    with handle.counters.expect(sizes_captured=0, calls_replayed=1):
        for one in (model, reference):
            one.norm.weight.mul_(2)
        x = rows(4)
        same(model(x), reference(x))


def test_a_model_moved_to_another_dtype_runs_with_its_new_weights() -> None:
    model, reference, _handle = compiled(Rows(), cudagraph_num_of_warmups=0)
    model(rows(4))
    x = rows(4).double()
    for _ in range(2):
        same(model.double()(x), reference.double()(x))
    same(model.float()(x.float()), reference.float()(x.float()))


def test_a_weight_replaced_with_capture_kept_to_warmup_runs_compiled_until_the_next_warmup() -> None:
    model, reference, handle = compiled(Rows(), capture_only_in_warmup=True)
    model(rows(4))
    handle.warmup([4])
    for one in (model, reference):
        one.norm.weight = torch.nn.Parameter(torch.linspace(1, 2, 8))
    x = rows(4)
    same(model(x), reference(x))
    assert handle.static_graphs.captured() == ()
    handle.warmup([4])
    with handle.counters.expect(calls_replayed=1):
        same(model(x), reference(x))


def test_weights_that_change_with_every_call_end_captures_instead_of_repeating_them() -> None:
    model, reference, handle = compiled(Rows(depth=1), cudagraph_num_of_warmups=0)
    for turn in range(11):
        for one in (model, reference):
            one.norm.weight = torch.nn.Parameter(torch.full((8,), float(turn)))
        x = rows(4)
        same(model(x), reference(x))
    assert handle.counters["sizes_captured"] == 9
    assert any(row[4] == "its memory changes from call to call: norm.weight" for row in table(handle))


def test_a_tensor_of_the_callers_that_comes_in_other_memory_is_captured_anew() -> None:
    model, _reference, handle = compiled(
        Cached(),
        cudagraph_mode="full",
        dynamic_arg_dims={"x": 0},
        cudagraph_capture_sizes=[3],
        cudagraph_num_of_warmups=0,
    )
    for turn in range(1, 4):
        total = torch.full((4,), 10.0 * turn)
        x = torch.randn(3, 4)
        same(model(x, total), x + turn + 10 * turn + 2)
        assert total.tolist() == [10 * turn + 2] * 4
    assert handle.counters["sizes_captured"] == 3


def test_restoring_gives_up_what_was_captured() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_num_of_warmups=0)
    model(rows(4))
    handle.restore()
    assert handle.static_graphs.captured() == ()
    x = rows(4)
    assert torch.equal(model(x), reference(x))


# -- when it cannot be done


def test_without_a_gpu_calls_run_compiled_after_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "torch_piecewise"):
        model, reference, handle = compiled(Rows(), static_graph_class=None)
        for _ in range(3):
            x = rows(4)
            assert torch.equal(model(x), reference(x))
    (record,) = caplog.records
    assert "cudagraph_mode='piecewise' asks for static graphs, but the model works on cpu" in record.message
    assert handle.warmup([4]) is None
    assert table(handle) == []


def test_a_class_that_does_not_exist_is_told_when_the_model_is_compiled() -> None:
    with pytest.raises(ConfigError, match="cannot be imported"):
        compiled(Rows(), static_graph_class="no_such_package.Graph")


def test_calls_that_want_gradients_run_compiled() -> None:
    with torch.enable_grad():
        model, _reference, handle = compiled(
            torch.nn.Linear(4, 4), cudagraph_mode="full", dynamic_arg_dims={"input": 0}
        )
        x = torch.randn(4, 4, requires_grad=True)
        model(x).sum().backward()
        assert x.grad is not None
    assert table(handle) == [(4, None, "NONE", 1, "gradients are wanted")]


def test_sizes_that_depend_on_data_are_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    def picks(x: Tensor) -> Tensor:
        return x[x[:, 0] > 0] * 2

    with (
        caplog.at_level(logging.WARNING, "torch_piecewise"),
        torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True),
    ):
        run = tp.compile(
            picks,
            backend="eager",
            disable_cache=True,
            cudagraph_mode="full",
            static_graph_class="torch_piecewise.testing.GraphRecorder",
        )
        for _ in range(3):
            x = torch.randn(5, 2)
            assert torch.equal(run(x), picks(x))
    assert any("depends on data" in record.message for record in caplog.records)


def test_the_budget_keeps_what_was_used_last_and_is_reported() -> None:
    model, reference, handle = compiled(
        Rows(),
        cudagraph_num_of_warmups=0,
        cudagraph_memory_budget=250,
        static_graph_class="tests.test_static_calls.Metered",
        cudagraph_mode="full",
    )
    events: list[Any] = []
    handle.bus.add(events.append)
    for size in (2, 4, 2, 8):
        x = rows(size)
        same(model(x), reference(x))
    assert [key.descriptor.num_tokens for key in handle.static_graphs.captured()] == [2, 8]
    assert [e.descriptor.num_tokens for e in events if isinstance(e, SizeEvicted)] == [4]
    (report,) = handle.static_graphs.reports()
    assert (report.bytes_used, report.captured, report.evicted) == (200, 2, 1)
    assert handle.counters["sizes_evicted"] == 1


def test_with_no_budget_left_calls_run_compiled() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_time_budget=1e-9, cudagraph_num_of_warmups=0)
    refused: list[Any] = []
    handle.bus.add(lambda event: refused.append(event) if isinstance(event, CaptureRefused) else None)
    model(rows(8))
    report = handle.warmup()
    assert report is not None and (report.captured, report.refused) == (1, 2)
    x = rows(2)
    assert torch.equal(model(x), reference(x))
    assert (2, None, "NONE", 1, "no budget left") in table(handle)
    assert len(refused) == 2


class Metered(GraphRecorder):
    """A recorder whose graphs cost 100 bytes each, as a driver's own memory does."""

    def memory_in_use(self) -> int:
        return 100 * len(self._pool.graphs)


FAILING: dict[str, bool] = {"now": False}


@tp.splitting_op("tests::may_fail", mutates_args=("out",))
def may_fail(x: Tensor, out: Tensor) -> None:
    """Fails when it is told to."""
    if FAILING["now"]:
        raise ValueError("no room")
    out.copy_(x)


@tp.splitting_op("tests::looks", mutates_args=("out",))
def looks(x: Tensor, out: Tensor) -> None:
    """Reads a value on the host, which no graph can hold."""
    out.copy_(x * float(x.sum().item() * 0 + 1))


def failing(op: Any) -> Any:
    def step(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        op(x * 2, out)
        return out + 1

    return step


@pytest.mark.parametrize("mode", ["piecewise", "full"])
def test_an_exception_in_the_middle_of_a_capture_leaves_everything_usable(mode: str) -> None:
    run = tp.compile(
        failing(may_fail),
        dynamic_arg_dims={"x": 0},
        backend="eager",
        disable_cache=True,
        splitting_ops=["tests::may_fail"],
        cudagraph_mode=mode,
        cudagraph_capture_sizes=[2, 4],
        cudagraph_num_of_warmups=0,
        static_graph_class="torch_piecewise.testing.GraphRecorder",
    )
    x = torch.randn(4)
    same(run(x), x * 2 + 1)
    FAILING["now"] = True
    try:
        with pytest.raises(ValueError, match="no room"):
            run(x[:2])
    finally:
        FAILING["now"] = False
    for size in (2, 4, 1):
        same(run(x[:size]), x[:size] * 2 + 1)
    assert tp.program_of(run).counters["calls_replayed"] == 4


def test_a_whole_call_that_no_graph_can_hold_is_served_without_one() -> None:
    run = tp.compile(
        failing(looks),
        dynamic_arg_dims={"x": 0},
        backend="eager",
        disable_cache=True,
        splitting_ops=["tests::looks"],
        cudagraph_mode="full",
        cudagraph_capture_sizes=[4],
        static_graph_class="torch_piecewise.testing.GraphRecorder",
    )
    for _ in range(4):
        x = torch.randn(4)
        same(run(x), x * 2 + 1)
    assert tp.program_of(run).counters.as_dict()["captures_refused"] == 1
    with pytest.raises(StaticGraphError, match="was called while a static graph was being captured"):
        tp.program_of(run).warmup([4])
    same(run(x), x * 2 + 1)


def test_threads_take_turns_and_get_their_own_results() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_num_of_warmups=0)
    model(rows(2))
    wrong: list[int] = []

    @torch.no_grad()
    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for turn in range(12):
            x = torch.randn(1 + (seed + turn) % 9, 8, generator=generator)
            if not torch.allclose(model(x), reference(x), atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert handle.counters["calls_replayed"] + handle.counters["calls_without_graphs"] == 49


@pytest.mark.parametrize("guards", ["none", "full"])
def test_with_other_guards_calls_replay_and_replaced_weights_are_seen(guards: str) -> None:
    model, reference, handle = compiled(Rows(depth=1), guards=guards, cudagraph_num_of_warmups=0)
    for turn in range(3):
        x = rows(4)
        same(model(x), reference(x))
        if turn == 1:
            for one in (model, reference):
                one.norm.weight = torch.nn.Parameter(torch.linspace(1, 2, 8))
    assert handle.counters["calls_replayed"] == 3


def test_a_language_model_decodes_with_its_own_cache_as_uncompiled() -> None:
    from torch_piecewise.demo.llama_config import LlamaConfig
    from torch_piecewise.demo.model import Llama

    plain = Llama(LlamaConfig(97, 32, 64, 2, 4, 2, 8, 1e-5, 1e4), capacity=32)
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model, reference, handle = compiled(
        plain,
        splitting_ops=["torch_piecewise_demo::attention"],
        dynamic_arg_dims={"input_ids": {0: "n"}, "positions": {0: "n"}},
        cudagraph_capture_sizes=[1],
    )
    past = 0
    for count in (5, 1, 1, 1, 3, 1):
        ids = torch.randint(0, 97, (count,))
        call = (ids, torch.arange(past, past + count), torch.tensor([past]))
        assert torch.equal(model(*call), reference(*call))
        past += count
    assert handle.counters["calls_replayed"] == 3


def test_torchs_own_door_replays_too() -> None:
    model = Rows()
    reference = copy.deepcopy(model)
    run = torch.compile(
        model,
        backend=tp.PiecewiseCompileBackend(
            backend="eager",
            splitting_ops=["tests::mix_heads"],
            disable_cache=True,
            cudagraph_mode="piecewise",
            cudagraph_capture_sizes=[4, 8],
            cudagraph_num_of_warmups=0,
            static_graph_class="tests.test_static_calls.Shared",
        ),
        dynamic=True,
        fullgraph=True,
    )
    Shared.made = []
    for size in (5, 3, 4):
        x = rows(size)
        same(run(x), reference(x))
    (recorder,) = Shared.made
    assert (recorder.captures, recorder.replays) == (6, 9)
    model.norm.weight = torch.nn.Parameter(torch.linspace(1, 2, 8))
    reference.norm.weight = torch.nn.Parameter(torch.linspace(1, 2, 8))
    x = rows(4)
    same(run(x), reference(x))


class Shared(GraphRecorder):
    """A recorder that can be found from outside."""

    made: ClassVar[list[GraphRecorder]] = []

    def __init__(self) -> None:
        super().__init__()
        Shared.made.append(self)
