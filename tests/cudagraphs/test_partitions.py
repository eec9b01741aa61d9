"""Compiled code that calls its parts itself: those are captured, what lies between them runs each time."""

from __future__ import annotations

import gc
import types
import weakref

import pytest
import torch

from torch_piecewise.cudagraphs import capture_plan, opaque_call
from torch_piecewise.cudagraphs.breakable import partitioned_call
from torch_piecewise.errors import StaticGraphError
from torch_piecewise.testing import GraphRecorder
from torch_piecewise.torch_private.partitions import Partitioned, partitions_through

pytestmark = pytest.mark.usefixtures("no_grad")


class Runner:
    """A generated module's runner: ``code(parts, *args)`` calls ``parts`` as generated code does."""

    def __init__(self, code, *parts):
        self.partitions = [list_taking(part) for part in parts]
        self.code = code

    def call(self, *args):
        return self.code(self.partitions, *args)


def list_taking(part):
    def call(args):
        given = tuple(args)
        args.clear()
        return part(*given)

    call.__name__ = part.__name__
    return call


def piece(code, *parts, graph=None):
    runner = Runner(code, *parts)
    return Partitioned(runner.call, runner, graph)


def capture(fn, *args, captures_cuts=False):
    """The plan and the backend."""
    recorder, line = GraphRecorder(), partitioned_call(fn)
    plan = capture_plan(lambda: line(*args), recorder, only_marked=True, captures_cuts=captures_cuts)
    return plan, recorder


def before(x):
    return (x.sin(), torch.empty_like(x))


def after(out, x):
    return (out.cos() + x,)


class Cut:
    """An operation between parts, that writes to its output argument and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, out):
        self.calls += 1
        out.copy_(x * 3)


def attention(cut):
    def code(parts, x):
        y, out = parts[0]([x])
        cut(y, out)
        (z,) = parts[1]([out, x])
        return (z,)

    return code


def test_each_part_is_a_graph_and_the_code_between_them_runs_each_time():
    cut, x = Cut(), torch.randn(4)
    run = piece(attention(cut), before, after)
    plan, recorder = capture(run, x)
    assert torch.equal(plan.outputs[0], run(x)[0])
    assert (len(plan.graphs), len(plan.steps), recorder.captures) == (2, 1, 2)
    for _ in range(3):
        cut.calls, recorder.replays = 0, 0
        x.copy_(torch.randn(4))
        plan.replay()
        assert (cut.calls, recorder.replays) == (1, 2)
        assert torch.equal(plan.outputs[0], run(x)[0])


def test_the_call_that_captures_is_carried_out_once():
    cut, x, cache = Cut(), torch.randn(4), torch.zeros(4)

    def writes(x, cache):
        cache.add_(x)
        return (x + 1, torch.empty_like(x), cache)

    def code(parts, x, cache):
        y, out, cache = parts[0]([x, cache])
        cut(y, out)
        return (out, cache)

    plan, _recorder = capture(piece(code, writes), x, cache)
    assert cut.calls == 1
    assert torch.equal(cache, x)
    plan.replay()
    assert torch.equal(cache, x + x)
    assert plan.outputs[1].data_ptr() == cache.data_ptr()
    assert torch.equal(plan.outputs[0], (x + 1) * 3)


def test_a_tensor_made_between_parts_is_found_by_the_part_that_reads_it():
    x = torch.randn(4, 6)

    def code(parts, x):
        (y,) = parts[0]([x])
        made = (y * 2).t()  # new memory each time, and no plain strides
        (z,) = parts[1]([made, x])
        return (z, made)

    run = piece(code, lambda x: (x.sin(),), lambda made, x: (made.cos() @ x,))
    plan, _recorder = capture(run, x)
    for _ in range(3):
        x.copy_(torch.randn(4, 6))
        keep = [torch.randn(6, 4) for _ in range(3)]  # other memory between parts than at capture
        plan.replay()
        assert all(map(torch.equal, plan.outputs, run(x)))
        del keep


def test_results_made_after_the_last_part_and_numbers_come_back():
    x = torch.randn(3)

    def code(parts, x):
        (y,) = parts[0]([x])
        return (y, y.exp(), 7, None)

    run = piece(code, lambda x: (x + 1,))
    plan, _recorder = capture(run, x)
    x.copy_(torch.randn(3))
    plan.replay()
    y, exp, number, nothing = plan.outputs
    assert torch.equal(y, x + 1)
    assert torch.equal(exp, (x + 1).exp())
    assert (number, nothing) == (7, None)


def test_a_part_whose_numbers_differ_runs_as_it_is():
    x, scale = torch.randn(3), [2]

    def code(parts, x):
        (y,) = parts[0]([x, scale[0]])
        (z,) = parts[1]([y])
        return (z,)

    run = piece(code, lambda x, n: (x * n,), lambda y: (y + 1,))
    plan, recorder = capture(run, x)
    scale[0], recorder.replays = 5, 0
    plan.replay()
    assert torch.equal(plan.outputs[0], x * 5 + 1)
    assert recorder.replays == 0  # the part after it would have read another result
    scale[0] = 2
    plan.replay()
    assert torch.equal(plan.outputs[0], x * 2 + 1)
    assert recorder.replays == 2


def test_a_part_that_works_on_other_memory_than_the_captured_one_runs_as_it_is():
    x, caches = torch.randn(3), [torch.zeros(3), torch.zeros(3)]

    def code(parts, x, first, second, which):
        cache = second if which else first
        return parts[0]([x, cache])

    def part(x, cache):
        cache.add_(x)
        return (x + 1,)

    choice = [0]
    run = piece(lambda parts, x, a, b: code(parts, x, a, b, choice[0]), part)
    plan, recorder = capture(run, x, *caches)
    choice[0], recorder.replays = 1, 0
    plan.replay()
    assert recorder.replays == 0
    assert torch.equal(caches[0], x)
    assert torch.equal(caches[1], x)


@pytest.mark.parametrize(
    "made", [lambda y: (y * 2).view(2, 2).unbind(), lambda y: ((y[0] + 1).expand(4), y + 2)]
)
def test_tensors_that_share_memory_or_overlap_themselves_keep_their_part_eager(made):
    x = torch.randn(4)

    def code(parts, x):
        (y,) = parts[0]([x])
        return parts[1](list(made(y)))

    run = piece(code, lambda x: (x.sin(),), lambda a, b: ((a + b).sum(),))
    plan, _recorder = capture(run, x)
    assert len(plan.graphs) == 1
    x.copy_(torch.randn(4))
    plan.replay()
    assert torch.equal(plan.outputs[0], run(x)[0])


def test_when_the_whole_call_is_captured_the_parts_are_nothing_special():
    cut, x = Cut(), torch.randn(4)
    run = piece(attention(cut), before, after)
    plan, recorder = capture(run, x, captures_cuts=True)
    assert (len(plan.graphs), recorder.captures) == (1, 1)
    x.copy_(torch.randn(4))
    plan.replay()
    assert torch.equal(plan.outputs[0], run(x)[0])


def test_code_without_parts_runs_eagerly_as_a_whole():
    x = torch.randn(4)
    plan, recorder = capture(lambda x: (x * 2,), x)
    assert (plan.graphs, recorder.captures) == ((), 0)
    x.copy_(torch.randn(4))
    plan.replay()
    assert torch.equal(plan.outputs[0], x * 2)


def test_code_that_works_on_copies_of_what_it_writes_runs_eagerly():
    graph = types.SimpleNamespace(inputs_to_check=(0,), mutated_input_idxs=(0,))
    run = piece(lambda parts, x: parts[0]([x]), lambda x: (x.add_(1),), graph=graph)
    aligned, odd = torch.zeros(8), torch.zeros(8)[1:]
    assert (run.works_on_copies((aligned,)), run.works_on_copies((odd,))) == (False, True)
    assert len(capture(run, aligned)[0].graphs) == 1
    plan, _recorder = capture(run, odd)
    assert plan.graphs == ()
    plan.replay()
    assert odd.tolist() == [2.0] * 7


def test_compiled_code_beside_it_becomes_a_graph_of_its_own():
    cut, x = Cut(), torch.randn(4)
    first, second = piece(attention(cut), before, after), opaque_call(lambda x: (x + 1,))
    line, recorder = partitioned_call(first), GraphRecorder()
    plan = capture_plan(lambda: second(*line(*second(x))), recorder, only_marked=True)
    assert (len(plan.graphs), len(plan.steps)) == (4, 3)
    x.copy_(torch.randn(4))
    plan.replay()
    assert torch.equal(plan.outputs[0], first(x + 1)[0] + 1)


@pytest.mark.parametrize("where", ["part", "between"])
def test_an_exception_leaves_nothing_captured_and_everything_usable(where):
    x, wrong = torch.randn(4), [where]

    def cut(y, out):
        if wrong == ["between"]:
            raise ValueError("no")
        out.copy_(y)

    def last(out, x):
        if wrong == ["part"]:
            raise ValueError("no")
        return (out + x,)

    run, recorder = piece(attention(cut), before, last), GraphRecorder()
    line = partitioned_call(run)
    with pytest.raises(ValueError, match="no"):
        capture_plan(lambda: line(x), recorder, only_marked=True)
    wrong.clear()
    plan = capture_plan(lambda: line(x), recorder, only_marked=True)
    x.copy_(torch.randn(4))
    plan.replay()
    assert torch.equal(plan.outputs[0], run(x)[0])


def test_results_of_another_shape_than_at_capture_are_an_error():
    x, size = torch.randn(4), [2]
    run = piece(lambda parts, x: (parts[0]([x])[0][: size[0]] + 1,), lambda x: (x,))
    plan, _recorder = capture(run, x)
    size[0] = 3
    with pytest.raises(StaticGraphError, match="returned something else than at capture"):
        plan.replay()


def test_results_are_the_callers_in_inference_mode_too():
    cut, x = Cut(), torch.randn(4)
    run = piece(lambda parts, x: parts[1]([parts[0]([x])[0] * 2, x]), before, after)
    with torch.inference_mode():
        plan, _recorder = capture(run, x)
        x.copy_(torch.randn(4))
        plan.replay()
    plan.replay()
    assert torch.equal(plan.outputs[0], run(x)[0])
    assert cut.calls == 0


def test_a_plan_keeps_its_code_alive_and_lets_it_go():
    x = torch.randn(4)
    run = piece(attention(Cut()), before, after)
    code = weakref.ref(run)
    plan, _recorder = capture(run, x)
    del run
    gc.collect()
    assert code() is not None
    plan.replay()
    plan.reset()
    del plan
    gc.collect()
    assert code() is None


def test_what_stands_around_parts_is_the_callers_and_ends_with_its_block():
    seen = []
    run = piece(attention(Cut()), before, after)

    def around(part, args):
        seen.append(part.__name__)
        return part(args)

    x = torch.randn(4)
    with partitions_through(around):
        inside = run(x)
    assert seen == ["before", "after"]
    assert torch.equal(run(x)[0], inside[0])
    assert seen == ["before", "after"]
