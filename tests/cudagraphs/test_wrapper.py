"""One callable, captured for each kind of batch and replayed."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading

import pytest
import torch

import torch_piecewise as tp
from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs import (
    BatchDescriptor,
    CUDAGraphOptions,
    CUDAGraphWrapper,
    OutputPolicy,
    capture_phase,
    forward_context,
    runs_eagerly,
)
from torch_piecewise.errors import ArgumentError, CaptureError, ConfigError, StaticGraphError
from torch_piecewise.testing import GraphRecorder

NONE, PIECEWISE, FULL = CUDAGraphMode.NONE, CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL


class Counted:
    """A runnable with an attribute, that counts how often its Python code runs."""

    hidden_size = 7

    def __init__(self):
        self.calls = 0

    def __call__(self, x, *, bias=None):
        self.calls += 1
        return x * 2 if bias is None else x * 2 + bias


@pytest.fixture
def recorder():
    return GraphRecorder()


def wrap(runnable, recorder, mode=FULL, **options):
    return CUDAGraphWrapper(runnable, mode, CUDAGraphOptions(**options), recorder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runnable": 3}, r"cannot be called\n  expected: a function or model\n  got: 3 \(int\)"),
        (
            {"options": {"log_captures": False}},
            r"got: \{.*\} \(dict\)\n  to do: write CUDAGraph",
        ),
        ({"pool": 3}, r"got: 3 \(int\)\n  to do: it lacks capture, weak, memory_in_use, turn"),
        ({"pool": GraphRecorder}, r"to do: write GraphRecorder\(\)"),
    ],
)
def test_arguments_of_another_kind_are_refused(given, message):
    arguments = {"runnable": torch.sin, "runtime_mode": FULL, "options": None, "pool": None, **given}
    with pytest.raises(ArgumentError, match=message):
        CUDAGraphWrapper(**arguments)


def test_the_environments_class_of_static_graphs_is_the_pool_where_none_is_given(monkeypatch):
    monkeypatch.setenv("TORCH_PIECEWISE_STATIC_GRAPH_CLASS", "torch_piecewise.testing.GraphRecorder")
    wrapper, x = CUDAGraphWrapper(Counted(), FULL), torch.randn(3)
    with forward_context(FULL, BatchDescriptor(num_tokens=3)):
        assert torch.equal(wrapper(x), x * 2)
        assert torch.equal(wrapper(x), x * 2)
    assert wrapper.calls == 1
    monkeypatch.setenv("TORCH_PIECEWISE_STATIC_GRAPH_CLASS", "nowhere.Graph")
    with pytest.raises(ConfigError, match=r"nowhere\.Graph"):
        CUDAGraphWrapper(Counted(), FULL)


def test_a_compiled_model_is_to_be_called_before_it_is_captured(recorder):
    model = torch.nn.Linear(4, 4)
    tp.compile(model, backend="eager", disable_cache=True)
    wrapper, x = wrap(model, recorder), torch.randn(2, 4)
    with torch.no_grad(), forward_context(FULL, BatchDescriptor(num_tokens=2)):
        with pytest.raises(CaptureError) as caught:
            wrapper(x)
        with forward_context(NONE, BatchDescriptor(num_tokens=2)):
            expected = wrapper(x)
        assert torch.equal(wrapper(x), expected)
    assert str(caught.value) == (
        "A compiled model meets a call that it has not been traced for while that call is captured\n"
        "  expected: a call of a kind that was traced and compiled before the capture\n"
        "  got: the first one of its kind, inside the capture of a static graph\n"
        "  to do: call the model once as it will be captured, outside of forward_context (or with "
        "CUDAGraphMode.NONE), then capture"
    )


def test_without_a_context_it_calls_through(recorder):
    wrapper = wrap(Counted(), recorder)
    wrapper(torch.ones(1))
    wrapper(torch.ones(1))
    assert (wrapper.calls, recorder.captures) == (2, 0)


@pytest.mark.parametrize("mode", [NONE, PIECEWISE])
def test_in_another_mode_it_calls_through(recorder, mode):
    wrapper = wrap(Counted(), recorder)
    with forward_context(mode, BatchDescriptor(1)):
        wrapper(torch.ones(1))
    assert (wrapper.calls, recorder.captures) == (1, 0)


def test_an_unseen_batch_is_captured_and_a_seen_one_replayed(recorder):
    wrapper, x = wrap(Counted(), recorder), torch.ones(4)
    for value in (1, 2, 3):
        x.fill_(value)
        with forward_context(FULL, BatchDescriptor(4)):
            assert wrapper(x).tolist() == [value * 2] * 4
    assert (wrapper.calls, recorder.captures) == (1, 1)
    with forward_context(FULL, BatchDescriptor(4, uniform=True)):
        wrapper(x)
    assert recorder.captures == 2
    assert [(row.size, row.count) for row in wrapper.replay_table().rows()] == [(4, 2)]


def test_the_runnables_attributes_are_reachable(recorder):
    runnable = Counted()
    wrapper = wrap(runnable, recorder)
    assert wrapper.hidden_size == 7
    assert wrapper.unwrap() is runnable
    with pytest.raises(AttributeError, match="no_such"):
        _ = wrapper.no_such


def test_full_outside_of_piecewise_captures_one_graph_and_pieces_separately(recorder):
    first = wrap(lambda x: x + 1, recorder, PIECEWISE)
    second = wrap(lambda x: x * 2, recorder, PIECEWISE)
    model = wrap(lambda x: second(first(x)), recorder, FULL)
    x = torch.ones(2)
    with forward_context(FULL, BatchDescriptor(2)):
        assert model(x).tolist() == [4, 4]
        assert recorder.captures == 1
        x.fill_(2)
        assert model(x).tolist() == [6, 6]
    with forward_context(PIECEWISE, BatchDescriptor(2)):
        assert model(x).tolist() == [6, 6]
    assert recorder.captures == 3
    assert second.captured_descriptors() == (BatchDescriptor(2),)


def test_a_wrapper_of_the_same_mode_inside_a_capture_becomes_part_of_it(recorder):
    inner = wrap(lambda x: x + 1, recorder)
    outer = wrap(lambda x: inner(x) * 2, recorder)
    with forward_context(FULL, BatchDescriptor(1)):
        assert outer(torch.ones(1)).tolist() == [4]
    assert recorder.captures == 1


def test_capture_outside_its_phase_is_refused(recorder):
    wrapper, x = wrap(Counted(), recorder, capture_only_in_warmup=True), torch.ones(1)
    with (
        forward_context(FULL, BatchDescriptor(1)),
        pytest.raises(StaticGraphError, match="outside of a capture phase"),
    ):
        wrapper(x)
    assert wrapper.calls == 0
    with forward_context(FULL, BatchDescriptor(1)), capture_phase():
        wrapper(x)
    with forward_context(FULL, BatchDescriptor(1)):
        assert wrapper(x).tolist() == [2]


def test_positional_and_keyword_addresses_are_checked(recorder):
    wrapper, x, bias = wrap(Counted(), recorder), torch.ones(2), torch.zeros(2)
    with forward_context(FULL, BatchDescriptor(2)):
        wrapper(x, bias=bias)
        with pytest.raises(StaticGraphError, match=r"args\[0\]"):
            wrapper(x.clone(), bias=bias)
        with pytest.raises(StaticGraphError, match="bias"):
            wrapper(x, bias=bias + 1)
        wrapper(x, bias=bias)


def test_unchecked_replays_read_the_captured_memory(recorder):
    wrapper, x = wrap(Counted(), recorder, check_addresses=False), torch.ones(1)
    with forward_context(FULL, BatchDescriptor(1)):
        wrapper(x)
        assert wrapper(torch.full((1,), 9.0)).tolist() == [2]


def test_results_kept_over_the_next_call_are_not_overwritten(recorder):
    wrapper, x = wrap(Counted(), recorder), torch.ones(1)
    with forward_context(FULL, BatchDescriptor(1)):
        wrapper(x)
        kept = wrapper(x)
        x.fill_(5)
        wrapper(x)
    assert kept.tolist() == [2]


def test_results_kept_over_the_next_call_are_refused_when_asked_for(recorder):
    wrapper, x = wrap(Counted(), recorder, outputs=OutputPolicy.REFUSE), torch.ones(1)
    with forward_context(FULL, BatchDescriptor(1)):
        kept = wrapper(x)
        with pytest.raises(StaticGraphError, match="still held"):
            wrapper(x)
        assert kept.tolist() == [2]
        del kept
        wrapper(x)


def test_pieces_lend_their_results_and_only_the_last_lets_go_of_its_memory():
    first, last = (CUDAGraphOptions.for_piece(index, 2) for index in range(2))
    assert (first.outputs, last.outputs) == (OutputPolicy.BORROW, OutputPolicy.BORROW)
    assert (first.weak_outputs, last.weak_outputs) == (False, True)
    assert (first.log_captures, last.log_captures) == (True, False)
    assert (first.collect_garbage, last.collect_garbage) == (True, False)


def test_the_last_pieces_memory_serves_the_next_size(recorder):
    wrapper = CUDAGraphWrapper(lambda x: x * 2, PIECEWISE, CUDAGraphOptions.for_piece(0, 1), recorder)
    for size in (64, 32):
        with forward_context(PIECEWISE, BatchDescriptor(size)):
            wrapper(torch.ones(size))
    assert recorder.memory_in_use() == 64 * 4


def test_only_the_first_piece_logs(recorder, caplog):
    with caplog.at_level(logging.INFO, logger="torch_piecewise"):
        for index in range(3):
            piece = CUDAGraphWrapper(
                lambda x: x + 1, PIECEWISE, CUDAGraphOptions.for_piece(index, 3), recorder
            )
            with forward_context(PIECEWISE, BatchDescriptor(1)):
                piece(torch.ones(1))
    assert len([record for record in caplog.records if "captured" in record.message]) == 1


def test_the_processs_garbage_collection_is_not_touched(recorder):
    before = (gc.collect, gc.isenabled(), gc.get_freeze_count(), gc.get_threshold())
    wrapper = wrap(lambda x: x + len([gc.isenabled()]), recorder, collect_garbage=False)
    with forward_context(FULL, BatchDescriptor(1)):
        wrapper(torch.ones(1))
    assert (gc.collect, gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()) == before


def test_clearing_gives_the_memory_back_and_the_next_call_captures_anew(recorder):
    wrapper, x = wrap(Counted(), recorder), torch.ones(1)
    with forward_context(FULL, BatchDescriptor(1)):
        wrapper(x)
        wrapper.clear_all_graphs()
        assert recorder.memory_in_use() == 0
        assert wrapper(x).tolist() == [2]
    assert recorder.captures == 2


def test_an_exception_while_capturing_comes_through_and_the_next_call_captures(recorder):
    fail = [True]

    def model(x):
        y = x.mul_(2)
        if fail[0]:
            raise ValueError("no")
        return y + 1

    wrapper, x = wrap(model, recorder), torch.ones(1)
    with forward_context(FULL, BatchDescriptor(1)):
        with pytest.raises(ValueError, match="no"):
            wrapper(x)
        assert x.tolist() == [1]
        fail[0] = False
        assert wrapper(x).tolist() == [3]
        assert wrapper(x).tolist() == [5]


def test_results_that_hide_tensors_leave_nothing_captured():
    recordings = []

    class Holding(GraphRecorder):
        @contextlib.contextmanager
        def capture(self, *, collect=False):
            with super().capture(collect=collect) as recording:
                recordings.append(recording)
                yield recording

    wrapper = wrap(lambda x: object(), Holding())
    with forward_context(FULL, BatchDescriptor(1)), pytest.raises(StaticGraphError, match="may hold tensors"):
        wrapper(torch.ones(1))
    assert wrapper.captured_descriptors() == ()
    with pytest.raises(StaticGraphError, match="given up"):
        recordings[0].replay()


def test_eager_segments_need_no_cutting(recorder):
    lengths = [3]
    attend = runs_eagerly(lambda q: q[: lengths[0]].sum() + torch.zeros_like(q))
    wrapper, x = wrap(lambda x: attend(x + 1) * 2, recorder), torch.ones(4)
    with forward_context(FULL, BatchDescriptor(4)):
        assert wrapper(x).tolist() == [12] * 4
        lengths[0] = 1
        assert wrapper(x).tolist() == [4] * 4


@pytest.mark.parametrize("mode", [NONE, CUDAGraphMode.FULL_AND_PIECEWISE])
def test_a_wrapper_serves_one_plain_mode(recorder, mode):
    with pytest.raises(ConfigError, match="one plain mode"):
        CUDAGraphWrapper(Counted(), mode, pool=recorder)


def test_threads_take_turns(recorder):
    wrapper, x = wrap(lambda x: (x * 2) + 1, recorder), torch.ones(256)
    with forward_context(FULL, BatchDescriptor(256)):
        wrapper(x)
    wrong = []

    def work():
        with forward_context(FULL, BatchDescriptor(256)):
            for _ in range(50):
                if not torch.equal(wrapper(x), torch.full((256,), 3.0)):
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert recorder.captures == 1
    assert recorder.replays == 201
