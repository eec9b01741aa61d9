"""The recorder behaves like a GPU's static graphs, mistakes included."""

from __future__ import annotations

import pytest
import torch

from torch_piecewise.cudagraphs import RecordsCalls, StaticGraphBackend
from torch_piecewise.errors import StaticGraphError
from torch_piecewise.testing import GraphRecorder


def capture(recorder, fn):
    with recorder.capture() as graph:
        result = fn()
    return graph, result


def test_nothing_is_carried_out_while_recording():
    recorder, x = GraphRecorder(), torch.ones(3)
    _, y = capture(recorder, lambda: x.add_(1) * 2)
    assert x.tolist() == [1, 1, 1]
    assert torch.isnan(y).all()


def test_a_replay_computes_on_what_lies_at_the_recorded_addresses_now():
    recorder, x = GraphRecorder(), torch.ones(3)
    graph, y = capture(recorder, lambda: torch.relu(x) * 2 + 1)
    x.copy_(torch.tensor([-1.0, 2.0, 3.0]))
    graph.replay()
    assert y.tolist() == [1, 5, 7]


def test_a_tensor_passed_anew_is_not_seen():
    recorder = GraphRecorder()
    inputs = {"x": torch.ones(2)}
    held = inputs["x"]
    graph, y = capture(recorder, lambda: inputs["x"] + 1)
    inputs["x"] = torch.full((2,), 50.0)
    graph.replay()
    assert y.tolist() == [2, 2]
    assert held.tolist() == [1, 1]


def test_python_code_does_not_run_again():
    recorder, x, runs = GraphRecorder(), torch.ones(1), []

    def fn():
        runs.append(1)
        return x * len(runs)

    graph, y = capture(recorder, fn)
    graph.replay()
    graph.replay()
    assert runs == [1]
    assert y.tolist() == [1]


def test_results_are_overwritten_by_the_next_replay():
    recorder, x = GraphRecorder(), torch.ones(1)
    graph, y = capture(recorder, lambda: x + 0)
    graph.replay()
    kept = y
    x.fill_(7)
    graph.replay()
    assert kept.tolist() == [7]


def test_in_place_work_happens_once_a_replay():
    recorder, total = GraphRecorder(), torch.zeros(1)
    graph, _ = capture(recorder, lambda: total.add_(5))
    graph.replay()
    graph.replay()
    assert total.tolist() == [10]


def test_views_and_their_writes_reach_the_memory_they_are_of():
    recorder, x = GraphRecorder(), torch.arange(6.0)
    graph, y = capture(recorder, lambda: x.view(2, 3).t()[1].mul_(10).sum())
    graph.replay()
    assert x.tolist() == [0, 10, 2, 3, 40, 5]
    assert y.item() == 50


def test_memory_freed_since_the_capture_is_reported():
    recorder, inputs = GraphRecorder(), [torch.ones(4)]
    graph, _ = capture(recorder, lambda: inputs[0] + 1)
    inputs.clear()
    with pytest.raises(StaticGraphError, match="has been freed since it was captured"):
        graph.replay()


@pytest.mark.parametrize(
    "read", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: bool((x > 0).all())]
)
def test_reading_values_on_the_host_is_refused(read):
    recorder, x = GraphRecorder(), torch.ones(2)
    with pytest.raises(StaticGraphError, match="while a static graph was being captured"):
        capture(recorder, lambda: read(x))
    graph, y = capture(recorder, lambda: x + 1)
    graph.replay()
    assert y.tolist() == [2, 2]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "read",
    [
        lambda x: bool(x.any()),
        lambda x: 1 if x.any() else 2,
        lambda x: not x[0],
        lambda x: x.sum().item(),
        lambda x: int(x[0]),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
    ],
)
def test_a_value_that_python_branches_on_or_keeps_is_refused_in_inference_mode_too(read, mode):
    recorder, x = GraphRecorder(), torch.ones(2)
    with mode(), pytest.raises(StaticGraphError, match="while a static graph was being captured"):
        capture(recorder, lambda: read(x))


def test_a_recorded_call_may_branch_on_values_since_its_python_part_runs_again():
    recorder, x = GraphRecorder(), torch.ones(2)
    branch = lambda a: a * 2 if (a > 0).any() else a - 1  # noqa: E731
    graph, y = capture(recorder, lambda: recorder.record_call(branch, (x,), {}))
    x.fill_(-1)
    graph.replay()
    assert y.tolist() == [-2, -2]


def test_memory_nobody_holds_is_used_again_by_the_next_recording():
    recorder, x = GraphRecorder(), torch.ones(1000)
    first, y = capture(recorder, lambda: x + 1)
    address, used = y.data_ptr(), recorder.memory_in_use()
    del y
    second, z = capture(recorder, lambda: x + 2)
    assert z.data_ptr() == address
    assert recorder.memory_in_use() == used
    first.replay()
    second.replay()
    assert z[0] == 3


def test_memory_somebody_holds_is_left_alone():
    recorder, x = GraphRecorder(), torch.ones(10)
    first, y = capture(recorder, lambda: (x + 1)[3:])
    _, z = capture(recorder, lambda: x + 2)
    assert z.data_ptr() != y.untyped_storage().data_ptr()
    first.replay()
    assert y.tolist() == [2] * 7


def test_memory_is_given_back_with_the_last_recording():
    recorder, x = GraphRecorder(), torch.ones(100)
    first, y = capture(recorder, lambda: x + 1)
    second, z = capture(recorder, lambda: x + 2)
    del y, z
    first.reset()
    assert recorder.memory_in_use() == 800
    second.reset()
    assert recorder.memory_in_use() == 0


def test_a_weak_tensor_reads_the_same_memory_and_keeps_nothing():
    recorder, x = GraphRecorder(), torch.ones(8)
    graph, y = capture(recorder, lambda: (x + 1).view(2, 4).t())
    weak = recorder.weak(y)
    assert (weak.shape, weak.stride(), weak.data_ptr()) == (y.shape, y.stride(), y.data_ptr())
    graph.replay()
    assert weak.tolist() == [[2, 2]] * 4
    del y
    _, z = capture(recorder, lambda: x * 3)
    assert z.data_ptr() == weak.data_ptr()


def test_memory_outside_the_pool_is_not_made_weak():
    recorder, x = GraphRecorder(), torch.ones(8)
    assert recorder.weak(x) is x


def test_a_reset_recording_cannot_be_replayed():
    recorder, x = GraphRecorder(), torch.ones(1)
    graph, _ = capture(recorder, lambda: x + 1)
    graph.reset()
    graph.reset()
    with pytest.raises(StaticGraphError, match="given up"):
        graph.replay()


def test_recordings_do_not_nest():
    recorder = GraphRecorder()
    with recorder.capture(), pytest.raises(StaticGraphError, match="another one"), recorder.capture():
        pass


def test_a_failed_recording_leaves_inputs_memory_and_recorder_as_they_were():
    recorder, x = GraphRecorder(), torch.ones(4)

    def fails():
        x.mul_(3)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        capture(recorder, fails)
    assert x.tolist() == [1, 1, 1, 1]
    assert recorder.captures == 0
    graph, y = capture(recorder, lambda: x + 1)
    graph.replay()
    assert y.tolist() == [2, 2, 2, 2]


def test_numbers_from_python_stay_what_they_were():
    recorder, x, scale = GraphRecorder(), torch.ones(1), [2]
    graph, y = capture(recorder, lambda: x * scale[0] + torch.tensor(float(scale[0])))
    scale[0] = 100
    graph.replay()
    assert y.tolist() == [4]


def test_random_numbers_are_drawn_anew_in_each_replay():
    recorder, x = GraphRecorder(), torch.zeros(16)
    graph, y = capture(recorder, lambda: x + torch.rand(16))
    graph.replay()
    first = y.clone()
    graph.replay()
    assert not torch.equal(first, y)


@torch.library.custom_op("torch_piecewise_tests::scaled", mutates_args=("out",))
def scaled(x: torch.Tensor, out: torch.Tensor) -> None:
    SEEN.append(1)
    out.copy_(x * len(SEEN))


SEEN: list[int] = []


def test_custom_operators_are_looked_into():
    SEEN.clear()
    recorder, x, out = GraphRecorder(), torch.ones(2), torch.zeros(2)
    graph, _ = capture(recorder, lambda: torch.ops.torch_piecewise_tests.scaled(x, out))
    assert graph.operations == ("aten.mul.Tensor", "aten.copy_.default")
    x.fill_(5)
    graph.replay()
    assert (out.tolist(), SEEN) == ([5, 5], [1])


def test_a_recorded_call_is_one_operation_on_fixed_addresses():
    recorder, x = GraphRecorder(), torch.ones(3)

    def compiled(a):
        a.add_(1)
        return (a * 2, None)

    with recorder.capture() as graph:
        y = recorder.record_call(compiled, (x,), {})[0] + 1
    assert x.tolist() == [1, 1, 1]
    assert len(graph.operations) == 2
    graph.replay()
    assert (x.tolist(), y.tolist()) == ([2, 2, 2], [5, 5, 5])


def test_a_call_outside_of_a_recording_is_just_a_call():
    assert GraphRecorder().record_call(lambda a: a + 1, (1,), {}) == 2


def test_complex_conjugates_stay_conjugates():
    recorder, x = GraphRecorder(), torch.tensor([1 + 2j])
    graph, y = capture(recorder, lambda: x.conj() * 1)
    graph.replay()
    assert y.tolist() == [1 - 2j]


def test_it_works_in_inference_mode_and_is_replayed_outside_of_it():
    recorder, x = GraphRecorder(), torch.ones(2)
    with torch.inference_mode():
        graph, y = capture(recorder, lambda: torch.empty_like(x).copy_(x) + 1)
        weak = recorder.weak(y)
    graph.replay()
    assert weak.tolist() == [2, 2]


def test_it_meets_the_protocols():
    recorder: StaticGraphBackend = GraphRecorder()
    assert isinstance(recorder, RecordsCalls)
    assert recorder.checks_addresses
    with recorder.turn(), recorder.turn():
        pass
