"""Whole calls: padded, copied, replayed by size, cut back, or run without graphs."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs import (
    BatchDescriptor,
    CaptureRefused,
    CaptureWhen,
    CUDAGraphDispatcher,
    DynamicInput,
    Extent,
    GraphBudget,
    OutputPolicy,
    RunnerOptions,
    SizeCaptured,
    SizeEvicted,
    StaticGraphRunner,
    capture_phase,
    cut_step,
    forward_context,
    opaque_call,
    runs_eagerly,
    straight_line,
)
from torch_piecewise.errors import ConfigError, StaticGraphError
from torch_piecewise.events import Bus
from torch_piecewise.testing import GraphRecorder

NONE, PIECEWISE, FULL = CUDAGraphMode.NONE, CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL


class Model:
    """Two layers with an eager cut after each; counts what its Python code does."""

    def __init__(self):
        self.weight = torch.linspace(-1, 1, 12).view(3, 4)
        self.lines = 0
        self.attends = 0
        self.attend = cut_step(self._attend)
        self.project = opaque_call(lambda h, w: torch.relu(h @ w @ w.t()) + h)

    def _attend(self, h):
        self.attends += 1
        return h * 2

    def line(self, x, weight):
        self.lines += 1
        h = x
        for _ in range(2):
            h = self.attend(self.project(h, weight))
        return (h + 1,)

    def eager(self, x):
        h = x
        for _ in range(2):
            h = (torch.relu(h @ self.weight @ self.weight.t()) + h) * 2
        return h + 1


def runner_for(model, sizes=(2, 4, 8), mode=PIECEWISE, backend=None, **fields):
    options = {name: fields.pop(name) for name in list(fields) if name in RunnerOptions.__annotations__}
    return StaticGraphRunner(
        lambda size: model.line,
        CUDAGraphDispatcher(mode, sizes),
        backend or GraphRecorder(),
        {0: DynamicInput()},
        {0: [Extent(0)]},
        options=RunnerOptions(**options),
        **fields,
    )


def rows(runner):
    return [(row.size, row.padded_to, row.mode, row.count, row.why) for row in runner.table().rows()]


def test_sizes_are_warmed_up_largest_first_with_progress():
    model, events, progress = Model(), [], []
    runner = runner_for(model, bus=Bus(events.append))
    report = runner.warmup(
        example=(torch.ones(3, 3), model.weight), progress=lambda *state: progress.append(state)
    )
    assert [event.descriptor.num_tokens for event in events] == [8, 4, 2]
    assert all(isinstance(event, SizeCaptured) and event.graphs == 3 for event in events)
    assert progress == [(1, 3, BatchDescriptor(8)), (2, 3, BatchDescriptor(4)), (3, 3, BatchDescriptor(2))]
    assert report.captured == 3
    assert model.lines == 6


def test_calls_are_padded_replayed_and_cut_back():
    model = Model()
    runner = runner_for(model)
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    model.lines = 0
    for size in (1, 2, 3, 5, 8):
        x = torch.randn(size, 3)
        (y,) = runner(x, model.weight)
        assert y.shape == (size, 3)
        torch.testing.assert_close(y, model.eager(x))
    assert model.lines == 0
    assert rows(runner) == [
        (1, 2, PIECEWISE, 1, ""),
        (2, 2, PIECEWISE, 1, ""),
        (3, 4, PIECEWISE, 1, ""),
        (5, 8, PIECEWISE, 1, ""),
        (8, 8, PIECEWISE, 1, ""),
    ]


def test_sizes_beyond_the_largest_run_without_graphs():
    model = Model()
    runner = runner_for(model)
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    x = torch.randn(9, 3)
    torch.testing.assert_close(runner(x, model.weight)[0], model.eager(x))
    assert rows(runner) == [(9, None, NONE, 1, "no graph is meant for it")]


def test_a_plan_is_flat_with_eager_bodies_between_graphs():
    model, recorder = Model(), GraphRecorder()
    runner = runner_for(model, [4], backend=recorder)
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    recorder.replays, model.attends = 0, 0
    runner(torch.ones(4, 3), model.weight)
    assert (recorder.replays, model.attends) == (3, 2)


def test_full_mode_captures_the_cuts_too():
    model, recorder = Model(), GraphRecorder()
    runner = runner_for(model, [4], mode=FULL, backend=recorder)
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    recorder.replays, model.attends = 0, 0
    x = torch.randn(3, 3)
    torch.testing.assert_close(runner(x, model.weight)[0], model.eager(x))
    assert (recorder.replays, model.attends) == (1, 0)


def test_uniform_batches_replay_one_graph_and_mixed_ones_the_pieces():
    model = Model()
    uniform = [False]
    runner = runner_for(
        model, [4], mode=CUDAGraphMode.FULL_AND_PIECEWISE, uniform_when=lambda args: uniform[0]
    )
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    x = torch.randn(3, 3)
    for uniform[0] in (False, True):
        torch.testing.assert_close(runner(x, model.weight)[0], model.eager(x))
    assert rows(runner) == [(3, 4, FULL, 1, ""), (3, 4, PIECEWISE, 1, "")]


def test_a_context_decides_where_there_is_one():
    model = Model()
    runner = runner_for(model, [4], mode=CUDAGraphMode.FULL_AND_PIECEWISE)
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    x = torch.randn(3, 3)
    decisions = [
        (FULL, BatchDescriptor(4, num_reqs=4, uniform=True)),
        (PIECEWISE, BatchDescriptor(4)),
        (NONE, BatchDescriptor(4)),
        (PIECEWISE, BatchDescriptor(2)),
    ]
    for mode, descriptor in decisions:
        with forward_context(mode, descriptor):
            torch.testing.assert_close(runner(x, model.weight)[0], model.eager(x))
    assert rows(runner) == [
        (3, 4, FULL, 1, ""),
        (3, None, NONE, 1, "forward_context says 2 tokens, the call has 3"),
        (3, None, NONE, 1, "no graph is meant for it"),
        (3, 4, PIECEWISE, 1, ""),
    ]


def test_adapter_counts_are_part_of_the_key():
    model = Model()
    dispatcher = CUDAGraphDispatcher(PIECEWISE, [4], lora_counts=[0, 2])
    runner = StaticGraphRunner(
        lambda size: model.line, dispatcher, GraphRecorder(), {0: DynamicInput()}, {0: [Extent(0)]}
    )
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    assert len(runner.captured()) == 2
    decision = dispatcher.dispatch(BatchDescriptor(3, has_lora=True, num_active_loras=1))
    x = torch.randn(3, 3)
    with forward_context(*decision):
        torch.testing.assert_close(runner(x, model.weight)[0], model.eager(x))
    assert decision.descriptor.num_active_loras == 2
    assert rows(runner) == [(3, 4, PIECEWISE, 1, "")]


def test_results_kept_over_the_next_call_are_copies():
    model = Model()
    runner = runner_for(model)
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    inputs = [torch.randn(size, 3) for size in (4, 4, 2, 3)]
    kept = [runner(x, model.weight)[0] for x in inputs]
    for x, y in zip(inputs, kept, strict=True):
        torch.testing.assert_close(y, model.eager(x))


def test_results_held_over_a_call_of_another_size_are_refused_when_asked_for():
    model = Model()
    runner = runner_for(model, outputs=OutputPolicy.REFUSE)
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    x = torch.randn(4, 3)
    kept = runner(x, model.weight)
    with pytest.raises(StaticGraphError, match="still held"):
        runner(x[:1], model.weight)
    torch.testing.assert_close(kept[0], model.eager(x))
    del kept
    assert runner(x[:1], model.weight)[0].shape == (1, 3)


def test_nothing_is_captured_over_results_that_are_still_held():
    runner = StaticGraphRunner(
        lambda size: lambda x: (x,),
        CUDAGraphDispatcher(PIECEWISE, [4]),
        GraphRecorder(),
        {0: DynamicInput()},
        {0: [Extent(0)]},
        options=RunnerOptions(outputs=OutputPolicy.REFUSE),
    )
    runner.warmup(example=(torch.ones(2),))
    kept = runner(torch.full((4,), 7.0))
    with pytest.raises(StaticGraphError, match="still held"):
        runner.warmup([2])
    assert kept[0].tolist() == [7] * 4


def test_an_input_handed_back_is_a_copy_unless_it_is_the_callers():
    cache = torch.zeros(4)
    runner = StaticGraphRunner(
        lambda size: lambda x, c: (x, c.add_(1)),
        CUDAGraphDispatcher(PIECEWISE, [2]),
        GraphRecorder(),
        {0: DynamicInput()},
        {0: [Extent(0)]},
        options=RunnerOptions(warmups=0),
    )
    runner.warmup(example=(torch.ones(2), cache))
    kept, same = runner(torch.ones(2), cache)
    runner(torch.zeros(2), cache)
    assert kept.tolist() == [1, 1]
    assert same.data_ptr() == cache.data_ptr()
    assert cache.tolist() == [3] * 4


@pytest.mark.parametrize("mode", [PIECEWISE, FULL])
@settings(max_examples=20, deadline=None)
@given(
    calls=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 100)), min_size=1, max_size=12),
    sizes=st.sets(st.integers(1, 10), max_size=4),
    when=st.sampled_from(list(CaptureWhen)),
    warmups=st.integers(0, 2),
)
def test_whatever_is_called_in_whatever_order_results_are_eagers(mode, calls, sizes, when, warmups):
    model = Model()
    runner = runner_for(model, sizes, mode=mode, capture=when, warmups=warmups)
    kept = []
    for size, seed in calls:
        x = torch.randn(size, 3, generator=torch.Generator().manual_seed(seed))
        kept.append((x, runner(x, model.weight)[0]))
        if seed % 3 == 0:
            runner.capture_pending()
    for x, y in kept:
        torch.testing.assert_close(y, model.eager(x))


def test_on_call_each_call_is_carried_out_once():
    total = torch.zeros(1)

    def line(x, counter):
        counter.add_(x.sum())
        return (x + counter,)

    runner = StaticGraphRunner(
        lambda size: line,
        CUDAGraphDispatcher(PIECEWISE, [4]),
        GraphRecorder(),
        {0: DynamicInput()},
        {0: [Extent(0)]},
        options=RunnerOptions(capture=CaptureWhen.ON_CALL, warmups=2),
    )
    for calls in range(1, 6):
        assert runner(torch.ones(3), total)[0].tolist() == [3 * calls + 1] * 3
    assert rows(runner) == [(3, 4, NONE, 2, "warming up"), (3, 4, PIECEWISE, 3, "")]


def test_a_thread_captures_only_what_it_has_run_itself():
    model = Model()
    runner = runner_for(model, [4], capture=CaptureWhen.ON_CALL)

    def serve():
        with torch.no_grad():
            x = torch.randn(4, 3)
            torch.testing.assert_close(runner(x, model.weight)[0], model.eager(x))

    serve()
    other = threading.Thread(target=serve)
    other.start()
    other.join()
    assert runner.captured() == ()
    serve()
    assert len(runner.captured()) == 1


def test_between_calls_sizes_asked_for_are_captured_when_told_to():
    model = Model()
    runner = runner_for(model, capture=CaptureWhen.BETWEEN_CALLS)
    x = torch.randn(3, 3)
    runner(x, model.weight)
    assert runner.captured() == ()
    assert (runner.capture_pending(), runner.capture_pending()) == (1, 0)
    torch.testing.assert_close(runner(x, model.weight)[0], model.eager(x))
    assert rows(runner) == [(3, None, NONE, 1, "not captured"), (3, 4, PIECEWISE, 1, "")]


@pytest.mark.parametrize("when", [CaptureWhen.BETWEEN_CALLS, CaptureWhen.ON_CALL])
def test_a_larger_size_captured_later_does_not_drive_out_a_smaller_one(when):
    model = Model()
    runner = runner_for(model, capture=when, warmups=0)
    for size in (2, 8):
        runner(torch.ones(size, 3), model.weight)
        runner.capture_pending()
    assert [key.descriptor.num_tokens for key in runner.captured()] == [2, 8]


def test_without_warmup_nothing_is_captured_but_in_a_capture_phase():
    model = Model()
    runner = runner_for(model)
    x = torch.randn(2, 3)
    runner(x, model.weight)
    assert runner.captured() == ()
    with capture_phase():
        torch.testing.assert_close(runner(x, model.weight)[0], model.eager(x))
    assert len(runner.captured()) == 1


def test_sizes_can_be_added_by_a_later_warmup():
    model = Model()
    runner = runner_for(model, [2])
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    runner.warmup([6])
    x = torch.randn(5, 3)
    torch.testing.assert_close(runner(x, model.weight)[0], model.eager(x))
    torch.testing.assert_close(runner(x[:2], model.weight)[0], model.eager(x[:2]))
    assert [row[:3] for row in rows(runner)] == [(2, 2, PIECEWISE), (5, 6, PIECEWISE)]


def test_a_warmup_needs_an_example_or_a_call_before():
    model = Model()
    runner = runner_for(model, [4])
    with pytest.raises(StaticGraphError, match="example"):
        runner.warmup()
    runner(torch.ones(2, 3), model.weight)
    assert runner.warmup().captured == 1


def test_a_call_with_another_weight_runs_without_graphs():
    model = Model()
    runner = runner_for(model, [4])
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    x, other = torch.randn(4, 3), model.weight * 3
    model.weight, before = other, model.weight
    torch.testing.assert_close(runner(x, other)[0], model.eager(x))
    assert rows(runner) == [(4, None, NONE, 1, "input 1 is not the captured one")]
    model.weight = before
    torch.testing.assert_close(runner(x, before)[0], model.eager(x))


def test_values_of_a_weight_may_change_in_place():
    model = Model()
    runner = runner_for(model, [4])
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    model.weight.mul_(0.5)
    x = torch.randn(4, 3)
    torch.testing.assert_close(runner(x, model.weight)[0], model.eager(x))
    assert rows(runner) == [(4, 4, PIECEWISE, 1, "")]


def test_calls_that_want_gradients_run_without_graphs():
    model = Model()
    runner = runner_for(model, [4])
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    x = torch.randn(4, 3, requires_grad=True)
    runner(x, model.weight)[0].sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        runner(x, model.weight)
    assert [row[2:] for row in rows(runner)] == [
        (NONE, 1, "gradients are wanted"),
        (PIECEWISE, 1, ""),
    ]


@pytest.mark.parametrize("captured_in", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("called_in", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes_may_differ_between_capture_and_call(captured_in, called_in):
    model = Model()
    runner = runner_for(model, [4])
    with captured_in():
        runner.warmup(example=(torch.ones(1, 3), model.weight))
    with called_in():
        x = torch.randn(3, 3)
        for _ in range(2):
            torch.testing.assert_close(runner(x, model.weight)[0], model.eager(x))
    assert rows(runner) == [(3, 4, PIECEWISE, 2, "")]


def test_a_dim_that_is_not_the_first():
    runner = StaticGraphRunner(
        lambda size: lambda x, ends: (x.cumsum(0) * 2, ends + x.stride(0)),
        CUDAGraphDispatcher(PIECEWISE, [8]),
        GraphRecorder(),
        {
            0: DynamicInput((Extent(1),)),
            1: DynamicInput((Extent(0, offset=1),), pad_value=None),
        },
        {0: [Extent(1)], 1: [Extent(0, offset=1)]},
    )
    runner.warmup(example=(torch.ones(2, 3), torch.zeros(4)))
    x, ends = torch.randn(2, 5), torch.arange(6.0)
    y, z = runner(x, ends)
    torch.testing.assert_close(y, x.cumsum(0) * 2)
    assert z.tolist() == (ends + 8).tolist()
    assert rows(runner) == [(5, 8, PIECEWISE, 1, "")]


def test_inputs_the_model_writes_to_are_copied_back():
    def line(x, state):
        state.add_(x)
        return (state * 2,)

    runner = StaticGraphRunner(
        lambda size: line,
        CUDAGraphDispatcher(PIECEWISE, [4]),
        GraphRecorder(),
        {0: DynamicInput(), 1: DynamicInput(copy_back=True)},
        {0: [Extent(0)]},
    )
    state = torch.zeros(3)
    runner.warmup(example=(torch.ones(3), state))
    assert state.tolist() == [0, 0, 0]
    for turn in (1, 2):
        assert runner(torch.ones(3), state)[0].tolist() == [2 * turn] * 3
    assert state.tolist() == [2, 2, 2]


def test_inputs_the_model_writes_to_are_copied_back_when_captured_on_call():
    runner = StaticGraphRunner(
        lambda size: lambda x: (x.add_(1) * 2,),
        CUDAGraphDispatcher(PIECEWISE, [4]),
        GraphRecorder(),
        {0: DynamicInput(copy_back=True)},
        {0: [Extent(0)]},
        options=RunnerOptions(capture=CaptureWhen.ON_CALL),
    )
    x = torch.zeros(3)
    for turn in (1, 2, 3):
        assert runner(x)[0].tolist() == [2 * turn] * 3
        assert x.tolist() == [turn] * 3


def test_without_copying_inputs_must_lie_where_they_lay():
    model = Model()
    buffers = {size: torch.ones(size, 3) for size in (2, 4)}
    runner = runner_for(model, [2, 4], copy_inputs=False)
    runner.warmup(example=lambda size: (buffers[size], model.weight))
    x = torch.randn(4, 3)
    buffers[4].copy_(x)
    torch.testing.assert_close(runner(buffers[4], model.weight)[0], model.eager(x))
    torch.testing.assert_close(runner(x, model.weight)[0], model.eager(x))
    torch.testing.assert_close(runner(buffers[4][:3], model.weight)[0], model.eager(x[:3]))
    assert rows(runner) == [
        (3, None, NONE, 1, "calls are not padded where inputs are not copied"),
        (4, None, NONE, 1, "input 0 is not the captured one"),
        (4, 4, PIECEWISE, 1, ""),
    ]


def test_when_another_dim_grows_buffers_grow_and_captures_on_the_old_ones_go():
    runner = StaticGraphRunner(
        lambda size: lambda x: (x * 2,),
        CUDAGraphDispatcher(PIECEWISE, [4]),
        GraphRecorder(),
        {0: DynamicInput()},
        {0: [Extent(0)]},
        options=RunnerOptions(capture=CaptureWhen.ON_CALL, warmups=0),
    )
    runner(torch.ones(4, 2))
    runner(torch.ones(4, 5))
    assert [row[3:] for row in rows(runner)] == [(1, "input 0 has another shape"), (1, "")]
    runner.clear()
    assert runner(torch.full((3, 5), 3.0))[0].tolist() == [[6.0] * 5] * 3
    assert runner(torch.full((4, 5), 4.0))[0].tolist() == [[8.0] * 5] * 4


class Metered(GraphRecorder):
    """A recorder whose graphs cost 100 bytes each, as a driver's own memory does."""

    def memory_in_use(self):
        return 100 * len(self._pool.graphs)


def one_graph_runner(sizes, events, **options):
    return StaticGraphRunner(
        lambda size: lambda x: (x + 1,),
        CUDAGraphDispatcher(PIECEWISE, sizes),
        Metered(),
        {0: DynamicInput()},
        {0: [Extent(0)]},
        options=RunnerOptions(**options),
        bus=Bus(events.append),
    )


def test_warmup_stops_when_the_memory_is_used_up():
    events = []
    runner = one_graph_runner([1, 2, 4, 8], events, budget=GraphBudget(max_bytes=250))
    report = runner.warmup(example=(torch.ones(1),))
    assert [key.descriptor.num_tokens for key in runner.captured()] == [8, 4]
    assert (report.bytes_used, report.captured, report.refused, report.evicted) == (200, 2, 2, 0)
    assert [type(event) for event in events].count(CaptureRefused) == 2
    assert runner(torch.ones(1))[0].tolist() == [2]
    assert rows(runner) == [(1, None, NONE, 1, "no budget left")]


def test_warmup_stops_when_the_time_is_used_up():
    events = []
    runner = one_graph_runner([1, 2], events, budget=GraphBudget(max_seconds=0.0))
    assert runner.warmup(example=(torch.ones(1),)).captured == 0
    assert [type(event) for event in events] == [CaptureRefused, CaptureRefused]
    runner(torch.ones(1))
    assert rows(runner) == [(1, None, NONE, 1, "no budget left")]


def test_lazily_captured_sizes_drive_out_the_least_recently_used():
    events = []
    runner = one_graph_runner(
        [1, 2, 4], events, capture=CaptureWhen.ON_CALL, warmups=0, budget=GraphBudget(max_bytes=200)
    )
    for size in (1, 2, 1, 4):
        assert runner(torch.zeros(size))[0].tolist() == [1] * size
    assert [key.descriptor.num_tokens for key in runner.captured()] == [1, 4]
    (evicted,) = [event for event in events if isinstance(event, SizeEvicted)]
    assert (evicted.descriptor.num_tokens, evicted.freed) == (2, 100)
    assert runner(torch.zeros(2))[0].tolist() == [1, 1]
    assert [key.descriptor.num_tokens for key in runner.captured()] == [4, 2]
    report = runner.report()
    assert (report.bytes_used, report.captured, report.evicted) == (200, 2, 2)


def test_a_size_that_is_too_large_for_the_budget_is_served_and_not_tried_again():
    events = []
    runner = one_graph_runner(
        [4], events, capture=CaptureWhen.ON_CALL, warmups=0, budget=GraphBudget(max_bytes=50)
    )
    for _ in range(3):
        assert runner(torch.zeros(4))[0].tolist() == [1] * 4
    assert [type(event) for event in events] == [SizeCaptured, CaptureRefused]
    assert runner.report().bytes_used == 0


def test_smaller_sizes_live_in_the_memory_of_the_largest():
    recorders = []
    for sizes in ([512], range(16, 513, 16)):
        model, recorder = Model(), GraphRecorder()
        runner = runner_for(model, sizes, backend=recorder)
        runner.warmup(example=(torch.ones(1, 3), model.weight))
        recorders.append((runner, recorder.memory_in_use()))
    (_, largest_alone), (_, all_sizes) = recorders
    assert all_sizes <= 1.2 * largest_alone


@pytest.mark.parametrize("where", ["line", "eager"])
def test_an_exception_in_the_middle_of_a_capture_leaves_the_rest_usable(where):
    fail_at = [2]
    recorder = GraphRecorder()

    def check(x, place):
        if place == where and x.shape[0] == fail_at[0]:
            raise RuntimeError("in the middle")
        return x * 2

    attend = runs_eagerly(lambda x: check(x, "eager"))
    runner = StaticGraphRunner(
        lambda size: lambda x: (check(attend(x + 1), "line"),),
        CUDAGraphDispatcher(PIECEWISE, [2, 4]),
        recorder,
        {0: DynamicInput()},
        {0: [Extent(0)]},
        options=RunnerOptions(warmups=0),
    )
    with pytest.raises(RuntimeError, match="in the middle"):
        runner.warmup(example=(torch.ones(1),))
    assert runner(torch.ones(4))[0].tolist() == [8] * 4
    assert [key.descriptor.num_tokens for key in runner.captured()] == [4]
    fail_at[0] = 0
    assert runner.warmup().captured == 2
    assert runner(torch.ones(2))[0].tolist() == [8] * 2


def test_an_exception_in_the_middle_of_a_replay_leaves_the_next_call_right():
    fail = [False]

    @runs_eagerly
    def attend(x):
        if fail[0]:
            raise RuntimeError("in the middle")
        return x * 2

    runner = StaticGraphRunner(
        lambda size: lambda x: (attend(x + 1),),
        CUDAGraphDispatcher(PIECEWISE, [4]),
        GraphRecorder(),
        {0: DynamicInput()},
        {0: [Extent(0)]},
    )
    runner.warmup(example=(torch.ones(1),))
    fail[0] = True
    with pytest.raises(RuntimeError, match="in the middle"):
        runner(torch.ones(3))
    fail[0] = False
    assert runner(torch.ones(3))[0].tolist() == [4] * 3


def test_a_call_from_inside_a_call_runs_without_graphs():
    inner = []

    @runs_eagerly
    def again(x):
        if not inner:
            inner.append(None)
            inner[0] = runner(x)[0]
        return x

    runner = StaticGraphRunner(
        lambda size: lambda x: (again(x + 1) + 1,),
        CUDAGraphDispatcher(PIECEWISE, [2]),
        GraphRecorder(),
        {0: DynamicInput()},
        {0: [Extent(0)]},
        options=RunnerOptions(warmups=0),
    )
    inner.append(None)
    runner.warmup(example=(torch.ones(2),))
    inner.clear()
    assert runner(torch.zeros(2))[0].tolist() == [2, 2]
    assert inner[0].tolist() == [3, 3]


def test_a_runner_inside_another_ones_capture_becomes_part_of_it():
    recorder, model = GraphRecorder(), Model()
    inner = runner_for(model, [4], backend=recorder)
    inner.warmup(example=(torch.ones(4, 3), model.weight))
    outer = StaticGraphRunner(
        lambda size: lambda x: (inner(x, model.weight)[0] * 2,),
        CUDAGraphDispatcher(FULL, [4]),
        recorder,
        {0: DynamicInput()},
        {0: [Extent(0)]},
        options=RunnerOptions(warmups=0),
    )
    outer.warmup(example=(torch.ones(4, 3),))
    recorder.replays = 0
    x = torch.randn(4, 3)
    torch.testing.assert_close(outer(x)[0], model.eager(x) * 2)
    assert recorder.replays == 1


def test_a_draft_model_has_a_pool_of_its_own():
    target, draft = Model(), Model()
    pools = [GraphRecorder(), GraphRecorder()]
    runners = [
        runner_for(model, [4], backend=pool) for model, pool in zip((target, draft), pools, strict=True)
    ]
    for runner, model in zip(runners, (target, draft), strict=True):
        runner.warmup(example=(torch.ones(1, 3), model.weight))
    used = pools[1].memory_in_use()
    runners[0].clear()
    assert (pools[0].memory_in_use(), pools[1].memory_in_use()) == (0, used)


def test_threads_take_turns():
    model = Model()
    runner = runner_for(model)
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for turn in range(20):
            x = torch.randn((seed + turn) % 9 + 1, 3, generator=generator)
            if not torch.allclose(runner(x, model.weight)[0], model.eager(x), atol=1e-5):
                wrong.append(x.shape)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sum(row[3] for row in rows(runner)) == 80


def test_a_line_can_be_made_of_steps():
    line = straight_line(
        [
            ("piece", lambda x, w: (x * w, x)),
            ("eager", lambda q, x: (q + 1, x)),
            ("piece", lambda q, x: q - x),
        ]
    )
    runner = StaticGraphRunner(
        lambda size: line,
        CUDAGraphDispatcher(PIECEWISE, [4]),
        GraphRecorder(),
        {0: DynamicInput()},
        {0: [Extent(0)]},
    )
    w = torch.tensor(3.0)
    runner.warmup(example=(torch.ones(4), w))
    assert runner(torch.tensor([1.0, 2.0]), w).tolist() == [3, 5]
    assert rows(runner) == [(2, 4, PIECEWISE, 1, "")]


def test_clear_gives_everything_back():
    model, recorder = Model(), GraphRecorder()
    runner = runner_for(model, backend=recorder)
    runner.warmup(example=(torch.ones(1, 3), model.weight))
    runner.clear()
    assert (recorder.memory_in_use(), runner.captured(), runner.report().captured) == (0, (), 0)
    x = torch.randn(2, 3)
    torch.testing.assert_close(runner(x, model.weight)[0], model.eager(x))


def test_something_must_tell_the_size_of_a_call():
    runner = StaticGraphRunner(
        lambda size: lambda x: x, CUDAGraphDispatcher(PIECEWISE), GraphRecorder(), {0: DynamicInput(())}
    )
    with pytest.raises(ConfigError, match="tells the size"):
        runner(torch.ones(1))
    assert runner.serve(1, (torch.ones(1),)).tolist() == [1]


def test_the_number_of_warmup_calls_is_not_negative():
    with pytest.raises(ConfigError, match="warm-up"):
        RunnerOptions(warmups=-1)
