"""What the contract says of static graphs, seen from outside: public names, recorder, small models."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from tests.static_models import Rows, compiled, table
from torch_piecewise.cudagraphs import capture_phase, opaque_call, runs_eagerly
from torch_piecewise.errors import ConfigError, GraphBreakError, StaticGraphError
from torch_piecewise.testing import GraphRecorder

pytestmark = pytest.mark.usefixtures("no_grad")

MODE, BATCH = tp.CUDAGraphMode, tp.BatchDescriptor


def rows(count: int, width: int = 8) -> Tensor:
    return torch.randn(count, width)


def same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected)


@tp.splitting_op("contract::by_slot", mutates_args=("out",))
def by_slot(x: Tensor, slots: Tensor, out: Tensor) -> None:
    """Row by row, [n, d] times [n]."""
    out.copy_(x * slots[:, None])


def scaled(x: Tensor, slots: Tensor) -> Tensor:
    out = torch.empty_like(x)
    by_slot(x, slots, out)
    return out + 1


EAGER_BODIES: list[int] = []


@tp.splitting_op("contract::looks_at_values", mutates_args=("out",))
@runs_eagerly
def looks_at_values(x: Tensor, out: Tensor) -> None:
    EAGER_BODIES.append(x.shape[0])
    out.copy_(x * float(x.sum() * 0 + 2))


# -- the wrapper


class Model:
    """Has attributes that a wrapper might well have too."""

    _mode, _table, _options, _pool, _entries, _turn = "its own", "t", "o", "p", "e", "u"
    layers = 5

    def __call__(self, x: Tensor, *, y: Tensor | None = None, more: Any = None) -> Tensor:
        z = x * 2 if y is None else x * 2 + y
        return z if more is None else z + more["k"][0]

    def reset_cache(self) -> str:
        return "done"


def wrapper_of(runnable: Any, mode: Any = MODE.FULL, **options: Any) -> Any:
    return tp.CUDAGraphWrapper(runnable, mode, tp.CUDAGraphOptions(**options), GraphRecorder())


@pytest.mark.parametrize("name", ["_mode", "_table", "_options", "_pool", "_entries", "_turn", "layers"])
def test_no_attribute_of_the_runnable_is_hidden_by_the_wrappers_own(name: str) -> None:
    model = Model()
    wrapper = wrapper_of(model)
    assert getattr(wrapper, name) == getattr(model, name)
    assert wrapper.reset_cache() == "done"
    assert wrapper.unwrap() is model


def test_keyword_and_nested_tensors_are_captured_and_their_addresses_checked() -> None:
    wrapper = wrapper_of(Model())
    x, y, k = rows(3), rows(3), rows(3)
    with tp.forward_context(MODE.FULL, BATCH(3)):
        for _ in range(3):
            for tensor in (x, y, k):
                tensor.copy_(rows(3))
            same(wrapper(x, more={"k": [k]}, y=y), x * 2 + y + k)
        with pytest.raises(StaticGraphError, match=r"more\['k'\]\[0\] of a replay is not the one"):
            wrapper(x, y=y, more={"k": [k.clone()]})
        with pytest.raises(StaticGraphError, match=r"more\['k'\]\[0\] of a replay is not the one"):
            wrapper(x, y=y)
        same(wrapper(x, y=y, more={"k": [k]}), x * 2 + y + k)


def test_full_outside_of_piecewise_steps_aside_when_pieces_are_wanted() -> None:
    pool, middle = GraphRecorder(), rows(2)
    pieces = [
        tp.CUDAGraphWrapper(opaque_call(fn), MODE.PIECEWISE, tp.CUDAGraphOptions.for_piece(at, 2), pool)
        for at, fn in enumerate((lambda x: x + 1, lambda x: x * 3))
    ]

    def model(x: Tensor) -> Tensor:
        middle.copy_(pieces[0](x) * 2)
        return pieces[1](middle)

    whole, x = tp.CUDAGraphWrapper(model, MODE.FULL, tp.CUDAGraphOptions(), pool), rows(2)
    for mode, captures in ((MODE.NONE, 0), (MODE.FULL, 1), (MODE.PIECEWISE, 3), (MODE.FULL, 3)):
        for _ in range(2):
            x.copy_(rows(2))
            with tp.forward_context(mode, BATCH(2)):
                same(whole(x), (x + 1) * 6)
        assert pool.captures == captures


def test_what_a_capture_phase_captured_is_replayed_after_it() -> None:
    wrapper, x = wrapper_of(Model(), capture_only_in_warmup=True), rows(2)
    with tp.forward_context(MODE.FULL, BATCH(2)):
        with pytest.raises(StaticGraphError, match="outside of a capture phase"):
            wrapper(x)
        with capture_phase():
            wrapper(x)
        x.copy_(rows(2))
        same(wrapper(x), x * 2)


# -- make_copy_and_call


def test_buffers_can_be_looked_at_and_grow_with_the_declared_dim() -> None:
    buffers: list[Tensor | None] = [None]
    call = tp.make_copy_and_call([1], buffers, lambda scale, x: x * scale, dims={1: 1})
    for size in (2, 5, 3):
        x = torch.randn(4, size)
        same(call(2, x), x * 2)
        assert buffers[0] is not None
        assert torch.equal(buffers[0].view(-1)[: x.numel()], x.view(-1))
    assert buffers[0].shape == (4, 5)


def test_growth_drops_captures_and_later_calls_are_right() -> None:
    wrapper = wrapper_of(lambda x: x * 2)
    call = tp.make_copy_and_call([0], [None], wrapper)
    for size, kept in ((2, [2]), (4, [4]), (2, [4, 2]), (8, [8]), (4, [8, 4])):
        with tp.forward_context(MODE.FULL, BATCH(size)):
            x = rows(size)
            same(call(x), x * 2)
        assert [one.num_tokens for one in wrapper.captured_descriptors()] == kept


def test_a_tuple_of_buffers_does() -> None:
    call = tp.make_copy_and_call([0], (None,), lambda x: x + 1)
    for size in (2, 7):
        x = rows(size)
        same(call(x), x + 1)


@pytest.mark.parametrize("args", [(), (3,), (torch.randn(2),)])
def test_an_argument_that_cannot_be_copied_is_named(args: tuple[Any, ...]) -> None:
    call = tp.make_copy_and_call([0], [None], lambda x: x, dims={0: 1})
    with pytest.raises(ConfigError, match="Argument 0 of a call is to be copied to a buffer, and cannot be"):
        call(*args)


# -- through tp.compile


def test_an_eager_segment_stays_out_of_graphs_of_whole_calls_when_its_cut_is_marked() -> None:
    def step(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        looks_at_values(x + 1, out)
        return out - 1

    run, _, handle = compiled(
        step, splitting_ops=["contract::looks_at_values"], cudagraph_mode="full", dynamic_arg_dims={"x": 0}
    )
    run(rows(3))
    handle.warmup([4])
    EAGER_BODIES.clear()
    x = rows(3)
    with handle.counters.expect(calls_replayed=1):
        got = run(x)
    same(got, (x + 1) * 2 - 1)
    assert EAGER_BODIES == [4]


def test_an_eager_segment_in_a_trace_is_an_error_that_says_how_to_have_it() -> None:
    marked = runs_eagerly(lambda x: x * 3)
    run = tp.compile(lambda x: marked(x) + 1, backend="eager", disable_cache=True, dynamic_arg_dims={"x": 0})
    with pytest.raises(
        GraphBreakError, match=r"functions marked with runs_eagerly: make it a tp\.splitting_op"
    ):
        run(rows(3))


def test_a_pad_value_for_an_argument_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        compiled(scaled, splitting_ops=["contract::by_slot"], cudagraph_pad_values={"slotz": -1})
    assert str(caught.value) == (
        "cudagraph_pad_values names an argument that scaled lacks\n"
        "  expected: one of x, slots\n"
        "  got: 'slotz'\n"
        "  to do: did you mean slots?"
    )


@pytest.mark.parametrize("dims", [None, {"x": 0, "slots": 0}])
def test_a_size_that_only_a_cut_reads_is_asked_about_before_anything_is_captured(
    dims: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run, reference, handle = compiled(scaled, splitting_ops=["contract::by_slot"], dynamic_arg_dims=dims)
    with caplog.at_level(logging.WARNING, "torch_piecewise"):
        for size in (3, 4, 3, 8):
            x, slots = rows(size), torch.randn(size)
            same(run(x, slots), reference(x, slots))
    assert handle.counters["sizes_captured"] == 0
    (said,) = [one.getMessage() for one in caplog.records if "not captured" in one.getMessage()]
    assert "dynamic_arg_dims={'x': {0: 'n'}, 'slots': {0: 'n'}}" in said


def test_sizes_of_one_name_are_padded_together_and_a_name_of_its_own_is_left_alone() -> None:
    names = {"x": {0: "n"}, "slots": {0: "n"}}
    run, reference, handle = compiled(scaled, splitting_ops=["contract::by_slot"], dynamic_arg_dims=names)
    for size in (3, 4, 3, 3):
        x, slots = rows(size), torch.randn(size)
        same(run(x, slots), reference(x, slots))
    assert handle.counters["calls_replayed"] == 3

    names = {"x": {0: "n"}, "slots": {0: "m"}}
    run, reference, handle = compiled(
        scaled,
        splitting_ops=["contract::by_slot"],
        dynamic_arg_dims=names,
        cudagraph_capture_sizes=[4],
        cudagraph_num_of_warmups=0,
    )
    for _ in range(2):
        x, slots = rows(4), torch.randn(4)
        same(run(x, slots), reference(x, slots))
    assert handle.counters["calls_replayed"] == 2


@pytest.mark.parametrize("sizes", [[-1], ["4"], [4.0], [True], "4", 4.0])
def test_warming_up_what_is_no_size_is_an_error(sizes: Any) -> None:
    model, _, handle = compiled(Rows())
    model(rows(3))
    with pytest.raises(ConfigError, match="warmup takes sizes"):
        handle.warmup(sizes)


class Quiet:
    """Static graphs without work in them, so that only Python is left to look at."""

    checks_addresses = False

    class Graph:
        def replay(self) -> None: ...

        def reset(self) -> None: ...

    @contextlib.contextmanager
    def capture(self, *, collect: bool = False) -> Iterator[Any]:
        yield self.Graph()

    def weak(self, tensor: Tensor) -> Tensor:
        return tensor

    def memory_in_use(self) -> int:
        return 0

    def turn(self) -> Any:
        return contextlib.nullcontext()


def python_calls(call: Callable[[], object]) -> list[str]:
    names: list[str] = []
    sys.setprofile(lambda frame, event, _: names.append(frame.f_code.co_name) if event == "call" else None)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names


def test_between_the_first_and_the_last_replay_python_does_nothing_but_the_cuts() -> None:
    model, _, handle = compiled(Rows(depth=3), static_graph_class=f"{__name__}.Quiet")
    model(rows(4))
    handle.warmup([4])
    x = rows(4)
    model(x)
    names = python_calls(lambda: model(x))
    first, last = names.index("replay", names.index("replay") + 1), len(names) - names[::-1].index("replay")
    between = [name for name in names[first:last] if not name.startswith("cut_")]
    assert between == ["replay", *(["mix_heads", "replay"] * 3)]


def test_one_budget_counts_for_every_trace_of_a_model() -> None:
    model, reference, handle = compiled(
        Rows(), cudagraph_capture_sizes=[4], cudagraph_num_of_warmups=0, cudagraph_memory_budget=1 << 20
    )
    model(rows(4))
    alone = handle.static_graphs.reports()[0].bytes_used
    x = rows(4).double()
    same(model.double()(x), reference.double()(x))
    assert [one.captured for one in handle.static_graphs.reports()] == [1, 1]
    assert all(one.bytes_used > alone for one in handle.static_graphs.reports())


def test_time_spent_on_one_trace_is_missing_for_the_next() -> None:
    model, reference, handle = compiled(
        Rows(), cudagraph_capture_sizes=[4], cudagraph_num_of_warmups=0, cudagraph_time_budget=1e-9
    )
    model(rows(4))
    x = rows(4).double()
    same(model.double()(x), reference.double()(x))
    assert handle.counters["sizes_captured"] == 1
    assert "no budget left" in {row[4] for row in table(handle)}


# -- callers that keep their inputs in place


def test_a_call_that_is_smaller_does_not_take_a_sizes_place() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_copy_inputs=False, cudagraph_num_of_warmups=0)
    stray, buffer = rows(3), rows(4)
    same(model(stray), reference(stray))
    for _ in range(3):
        buffer.copy_(rows(4))
        same(model(buffer), reference(buffer))
    assert table(handle) == [
        (3, None, "NONE", 1, "calls are not padded where inputs are not copied"),
        (4, 4, "PIECEWISE", 3, ""),
    ]


def test_a_call_in_other_memory_does_not_keep_a_sizes_place() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_copy_inputs=False, cudagraph_num_of_warmups=0)
    stray, buffer = rows(4), rows(4)
    same(model(stray), reference(stray))
    for _ in range(4):
        buffer.copy_(rows(4))
        same(model(buffer), reference(buffer))
    counted = table(handle)
    assert (4, None, "NONE", 1, "x is not the captured one") in counted
    assert (4, 4, "PIECEWISE", 4, "") in counted


def test_single_calls_in_other_memory_do_not_drive_out_what_is_captured() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_copy_inputs=False, cudagraph_num_of_warmups=0)
    buffer = rows(4)
    for _ in range(4):
        for x in (buffer, rows(4)):
            same(model(x), reference(x))
    assert handle.counters["sizes_captured"] == 1
    assert handle.counters["calls_replayed"] == 4


def test_warmup_captures_every_size_in_the_callers_own_buffer() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_copy_inputs=False)
    buffer = rows(8)
    model(buffer[:4])
    handle.warmup()
    for size in (8, 4, 2):
        buffer.copy_(rows(8))
        with handle.counters.expect(calls_replayed=1):
            same(model(buffer[:size]), reference(buffer[:size]))


def test_sizes_that_the_callers_buffer_has_no_room_for_stay_without_a_graph() -> None:
    model, reference, handle = compiled(Rows(), cudagraph_copy_inputs=False)
    buffer = rows(4)
    model(buffer)
    handle.warmup()
    x = rows(8)
    for one in (x, buffer):
        same(model(one), reference(one))
    assert (8, None, "NONE", 1, "the memory of x has no room for size 8") in table(handle)
    assert handle.counters["calls_replayed"] == 1
