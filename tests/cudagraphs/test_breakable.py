"""Captures that are interrupted by eager code compute what the code computes, then and later."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch

from torch_piecewise.cudagraphs import capture_plan, cut_step, opaque_call, runs_eagerly
from torch_piecewise.cudagraphs.breakable import capture_in_progress
from torch_piecewise.errors import StaticGraphError
from torch_piecewise.testing import GraphRecorder


def test_marked_functions_are_themselves_outside_of_a_capture():
    for mark in (runs_eagerly, cut_step, opaque_call):

        @mark
        def double(x, *, by=2):
            """Doc."""
            return x * by

        assert double(3, by=5) == 15
        assert double.__doc__ == "Doc."


def test_a_plan_without_breaks_is_one_graph():
    recorder, x = GraphRecorder(), torch.ones(2)
    plan = capture_plan(lambda: x + 1, recorder)
    assert plan.outputs.tolist() == [2, 2]
    x.fill_(4)
    plan.replay()
    assert plan.outputs.tolist() == [5, 5]
    assert (len(plan.graphs), len(plan.steps)) == (1, 1)


def test_a_marked_function_runs_in_capture_and_in_each_replay_on_real_values():
    recorder, x, seen = GraphRecorder(), torch.ones(2), []

    @runs_eagerly
    def attend(q, scale):
        seen.append((q.tolist(), scale))
        return q * seen[-1][0][0]

    plan = capture_plan(lambda: attend(x + 1, 7) + 0.5, recorder)
    assert plan.outputs.tolist() == [4.5, 4.5]
    x.fill_(2)
    plan.replay()
    assert plan.outputs.tolist() == [9.5, 9.5]
    assert seen == [([2, 2], 7), ([3, 3], 7)]
    assert (len(plan.graphs), len(plan.steps)) == (2, 3)


def test_a_marked_function_may_write_to_its_arguments():
    recorder, x, cache = GraphRecorder(), torch.ones(2), torch.zeros(2)

    @runs_eagerly
    def attend(q, *, out):
        cache.add_(q)
        out.copy_(cache)

    def fn():
        q = x * 2
        out = torch.empty_like(q)
        attend(q, out=out)
        return out + 1

    plan = capture_plan(fn, recorder)
    assert (cache.tolist(), plan.outputs.tolist()) == ([2, 2], [3, 3])
    plan.replay()
    assert (cache.tolist(), plan.outputs.tolist()) == ([4, 4], [5, 5])


def test_a_result_that_is_an_argument_stays_where_it_is():
    recorder, cache = GraphRecorder(), torch.zeros(4)

    @runs_eagerly
    def update(c):
        c += 1
        return c.view(2, 2)

    plan = capture_plan(lambda: update(cache).mul_(2), recorder)
    assert cache.tolist() == [2] * 4
    plan.replay()
    assert cache.tolist() == [6] * 4
    assert plan.outputs.data_ptr() == cache.data_ptr()


def test_nested_results_arrive():
    recorder, x = GraphRecorder(), torch.ones(2)

    @runs_eagerly
    def split(a):
        return {"low": a - 1, "rest": (a + 1, None, 3)}

    def fn():
        parts = split(x * 2)
        return parts["low"] * parts["rest"][0] * parts["rest"][2]

    plan = capture_plan(fn, recorder)
    assert plan.outputs.tolist() == [9, 9]
    x.fill_(3)
    plan.replay()
    assert plan.outputs.tolist() == [105, 105]


def test_indices_computed_eagerly_can_be_used_in_a_graph():
    recorder, table, x = GraphRecorder(), torch.arange(10.0), torch.tensor([1, 2])
    pick = runs_eagerly(lambda i: i * 2)
    plan = capture_plan(lambda: table[pick(x + 1)] + 0, recorder)
    assert plan.outputs.tolist() == [4, 6]
    x.fill_(0)
    plan.replay()
    assert plan.outputs.tolist() == [2, 2]


def test_each_side_effect_happens_once_while_capturing():
    recorder, total, x = GraphRecorder(), torch.zeros(1), torch.ones(1)
    pause = runs_eagerly(lambda a: a + 0)

    def fn():
        total.add_(1)
        pause(x)
        total.add_(10)
        return total

    capture_plan(fn, recorder)
    assert total.tolist() == [11]


def test_cuts_are_captured_when_the_whole_call_is():
    recorder, x, runs = GraphRecorder(), torch.ones(1), []

    @cut_step
    def cut(a):
        runs.append(1)
        return a * 2

    whole = capture_plan(lambda: cut(x) + 1, recorder, captures_cuts=True)
    assert len(whole.graphs) == 1
    whole.replay()
    assert (runs, whole.outputs.tolist()) == ([1], [3])
    pieces = capture_plan(lambda: cut(x) + 1, recorder)
    pieces.replay()
    assert (len(pieces.graphs), len(runs)) == (2, 3)


def test_what_always_runs_eagerly_does_so_when_the_whole_call_is_captured():
    recorder, x = GraphRecorder(), torch.ones(1)
    plan = capture_plan(lambda: runs_eagerly(lambda a: a * 2)(x) + 1, recorder, captures_cuts=True)
    assert len(plan.graphs) == 2


def test_compiled_code_is_one_operation_to_the_recorder():
    recorder, x = GraphRecorder(), torch.ones(1)
    piece = opaque_call(lambda a: torch.relu(a) * 2 + 1)
    plan = capture_plan(lambda: piece(x) + 1, recorder)
    assert len(plan.graphs[0].operations) == 2
    x.fill_(3)
    plan.replay()
    assert plan.outputs.tolist() == [8]


def test_memory_between_layers_is_used_again():
    recorder, x = GraphRecorder(), torch.ones(256)
    attend = runs_eagerly(lambda q: q + 1)

    def layers(count):
        def fn():
            h = x
            for _ in range(count):
                h = attend(h * 2) * 3
            return h

        return fn

    few = GraphRecorder()
    small = capture_plan(layers(2), few)
    plan = capture_plan(layers(16), recorder)
    assert recorder.memory_in_use() == few.memory_in_use()
    expected = layers(16)()
    plan.replay()
    assert torch.equal(plan.outputs, expected)
    assert len(small.graphs) == 3


def test_the_capturing_call_is_right_where_memory_of_one_graph_is_used_again_by_the_next():
    attend = cut_step(lambda q, out: out.copy_(q * 3))

    def call(x):
        for _ in range(4):
            q = torch.relu(x + 1)
            out = torch.empty_like(q)
            attend(q, out)
            x = x + out * 0.5
        return x

    x = torch.randn(3)
    plan = capture_plan(lambda: call(x), GraphRecorder())
    assert torch.equal(plan.outputs, call(x))
    x.copy_(torch.randn(3))
    plan.replay()
    assert torch.equal(plan.outputs, call(x))


def test_an_eager_body_runs_nested_marked_functions_as_they_are():
    recorder, x, inside = GraphRecorder(), torch.ones(1), []
    inner = runs_eagerly(lambda a: inside.append(capture_in_progress()) or a + 1)
    outer = runs_eagerly(lambda a: inner(a) * 2)
    plan = capture_plan(lambda: outer(x) + 0, recorder)
    plan.replay()
    assert (inside, plan.outputs.tolist()) == ([False, False], [4])


def test_an_eager_body_that_changes_its_result_is_found_out():
    recorder, x = GraphRecorder(), torch.ones(4)
    length = [4]
    crop = runs_eagerly(lambda a: (a[: length[0]] + 0, length[0]))
    plan = capture_plan(lambda: crop(x)[0] * 2, recorder)
    length[0] = 1
    with pytest.raises(StaticGraphError, match="returned something else than at capture"):
        plan.replay()


class Holding(GraphRecorder):
    """A recorder that keeps its recordings."""

    def __init__(self):
        super().__init__()
        self.recordings = []

    @contextlib.contextmanager
    def capture(self, *, collect=False):
        with super().capture(collect=collect) as recording:
            self.recordings.append(recording)
            yield recording


def test_a_failed_capture_gives_up_the_graphs_it_had():
    recorder, x = Holding(), torch.ones(1)

    def fn():
        runs_eagerly(lambda a: a + 1)(x * 2)
        raise ValueError

    with pytest.raises(ValueError):
        capture_plan(fn, recorder)
    assert len(recorder.recordings) == 2
    for recording in recorder.recordings:
        with pytest.raises(StaticGraphError, match="given up"):
            recording.replay()


class Bare:
    """A backend as another device might have it: no weak tensors, nothing that changes tensors' kinds."""

    checks_addresses = False

    @contextlib.contextmanager
    def capture(self, *, collect=False):
        yield types.SimpleNamespace(replay=lambda: None, reset=lambda: None)

    def weak(self, tensor):
        return tensor

    def memory_in_use(self):
        return 0

    def turn(self):
        return contextlib.nullcontext()


def test_a_plan_made_in_inference_mode_can_be_replayed_outside_of_it_on_any_backend():
    x = torch.ones(1)
    with torch.inference_mode():
        plan = capture_plan(lambda: runs_eagerly(lambda a: a + 1)(x), Bare())
    x.fill_(4)
    plan.replay()
    assert plan.outputs.tolist() == [5]


@pytest.mark.parametrize("where", ["before", "eager", "after"])
def test_an_exception_in_the_middle_leaves_everything_usable(where):
    recorder, x = GraphRecorder(), torch.ones(2)

    def fail(at):
        if at == where:
            raise ValueError(at)

    pause = runs_eagerly(lambda a: fail("eager") or a + 1)

    def fn():
        h = x * 2
        fail("before")
        h = pause(h)
        fail("after")
        return h + 1

    with pytest.raises(ValueError, match=where):
        capture_plan(fn, recorder)
    assert not capture_in_progress()
    assert recorder.memory_in_use() == 0
    where = "nowhere"
    plan = capture_plan(fn, recorder)
    plan.replay()
    assert plan.outputs.tolist() == [4, 4]


def test_an_eager_failure_that_the_code_swallows_is_no_plan():
    recorder, x = GraphRecorder(), torch.ones(1)

    @runs_eagerly
    def fails(a):
        raise KeyError

    def fn():
        try:
            fails(x)
        except KeyError:
            return x + 1

    with pytest.raises(StaticGraphError, match="went on without it"):
        capture_plan(fn, recorder)
    assert recorder.memory_in_use() == 0


def test_captures_do_not_nest():
    recorder, x = GraphRecorder(), torch.ones(1)
    with pytest.raises(StaticGraphError, match="another one"):
        capture_plan(lambda: capture_plan(lambda: x + 1, recorder), recorder)


def test_gradients_are_refused():
    recorder, x = GraphRecorder(), torch.ones(1, requires_grad=True)
    with pytest.raises(StaticGraphError, match="wants gradients"):
        capture_plan(lambda: x * 2, recorder)
    with torch.no_grad():
        capture_plan(lambda: x * 2, recorder)


def test_weak_outputs_let_go_of_their_memory_and_strong_ones_do_not():
    recorder, x = GraphRecorder(), torch.ones(64)
    weak = capture_plan(lambda: x + 1, recorder)
    strong = capture_plan(lambda: x + 2, recorder, weak_outputs=False)
    third = capture_plan(lambda: x + 3, recorder)
    assert weak.outputs.data_ptr() == strong.outputs.data_ptr()
    assert third.outputs.data_ptr() != strong.outputs.data_ptr()


def test_a_capture_in_inference_mode_is_replayed_outside_of_it():
    recorder, x = GraphRecorder(), torch.ones(1)
    pause = runs_eagerly(lambda a: a + 1)
    with torch.inference_mode():
        plan = capture_plan(lambda: pause(x * 2) * 2, recorder)
    x.fill_(2)
    plan.replay()
    assert plan.outputs.tolist() == [10]
    with torch.inference_mode():
        plan.replay()
