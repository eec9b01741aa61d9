"""Dynamic inputs are copied to memory that stays, and buffers grow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs import (
    BatchDescriptor,
    CUDAGraphWrapper,
    forward_context,
    make_copy_and_call,
)
from torch_piecewise.cudagraphs.copy_inputs import dense_stride, inner_dims_first
from torch_piecewise.errors import ConfigError, StaticGraphError
from torch_piecewise.testing import GraphRecorder


def addresses(*args):
    return [a.data_ptr() for a in args]


def test_chosen_inputs_are_copied_to_their_buffers_and_the_rest_is_passed_on():
    buffer, weight = torch.zeros(8, 2), torch.ones(2)
    seen = []
    call = make_copy_and_call([1], [buffer], lambda w, x, *, k: seen.append((w, x, k)))
    x = torch.arange(6.0).view(3, 2)
    call(weight, x, k=5)
    ((got_weight, got_x, k),) = seen
    assert got_weight is weight
    assert k == 5
    assert got_x.data_ptr() == buffer.data_ptr()
    assert torch.equal(got_x, x)
    assert torch.equal(buffer[:3], x)


def test_buffers_are_made_at_the_first_call_where_none_was_given():
    buffers = [None]
    call = make_copy_and_call([0], buffers, lambda x: x)
    small = call(torch.ones(2, 3))
    assert buffers[0].data_ptr() == small.data_ptr()
    assert call(torch.zeros(1, 3)).data_ptr() == small.data_ptr()


def test_the_first_call_need_not_be_the_largest():
    dropped, buffers = [], [None]
    call = make_copy_and_call([0], buffers, lambda x: x * 1, on_grow=lambda: dropped.append(1))
    call(torch.ones(2))
    assert call(torch.arange(50)[:0].float()).shape == (0,)
    assert dropped == []
    x = torch.arange(50.0)
    assert torch.equal(call(x), x)
    assert dropped == [1]
    assert buffers[0].numel() == 50


def test_room_for_the_largest_can_be_asked_for():
    dropped = []
    call = make_copy_and_call(
        [0], [None], lambda x: x, dims={0: 1}, largest=10, on_grow=lambda: dropped.append(1)
    )
    first = call(torch.ones(3, 2)).data_ptr()
    assert call(torch.ones(3, 10)).data_ptr() == first
    assert dropped == []


def test_a_dim_that_is_not_the_first_keeps_its_strides():
    buffer = torch.zeros(4, 16)
    call = make_copy_and_call([0], [buffer], lambda x: x, dims={0: 1})
    for n in (16, 5, 1):
        x = torch.randn(4, n)
        got = call(x)
        assert torch.equal(got, x)
        assert got.stride() == x.stride()
        assert got.data_ptr() == buffer.data_ptr()


def test_a_transposed_input_stays_transposed():
    x = torch.arange(6.0).view(2, 3).t()
    got = make_copy_and_call([0], [None], lambda x: x)(x)
    assert (got.stride(), got.tolist()) == (x.stride(), x.tolist())


def test_growth_drops_what_was_captured_on_the_old_buffer():
    recorder = GraphRecorder()
    wrapper = CUDAGraphWrapper(lambda x: x * 2, CUDAGraphMode.FULL, pool=recorder)
    call = make_copy_and_call([0], [None], wrapper)

    def run(x):
        with forward_context(CUDAGraphMode.FULL, BatchDescriptor(len(x))):
            return call(x)

    run(torch.ones(2))
    assert run(torch.full((2,), 3.0)).tolist() == [6, 6]
    assert run(torch.ones(4)).tolist() == [2] * 4
    assert wrapper.captured_descriptors() == (BatchDescriptor(4),)
    assert run(torch.full((2,), 4.0)).tolist() == [8, 8]


def test_an_input_of_another_dtype_is_not_converted_behind_the_callers_back():
    call = make_copy_and_call([0], [torch.zeros(4)], lambda x: x)
    with pytest.raises(StaticGraphError, match="does not fit the buffer"):
        call(torch.ones(2, dtype=torch.float64))


def test_one_buffer_for_each_index():
    with pytest.raises(ConfigError, match="one buffer for each"):
        make_copy_and_call([0, 1], [None], lambda *args: args)
    with pytest.raises(ConfigError, match="not contiguous"):
        make_copy_and_call([0], [torch.zeros(4, 2).t()], lambda x: x)


def test_buffers_made_in_inference_mode_can_be_filled_outside_of_it():
    call = make_copy_and_call([0], [None], lambda x: x + 1)
    with torch.inference_mode():
        call(torch.ones(2))
    assert call(torch.zeros(2)).tolist() == [1, 1]


@given(st.permutations(range(4)), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_dense_strides_reproduce_every_order_of_dims(order, size):
    tensor = torch.empty([size[i] for i in order]).permute([order.index(i) for i in range(4)])
    again = torch.empty(0).as_strided((0,), (1,))
    stride = dense_stride(inner_dims_first(tensor), tensor.shape)
    laid_out = again.new_empty(tensor.numel()).as_strided(tensor.shape, stride)
    assert laid_out.copy_(tensor).numel() == tensor.numel()
    differing = [i for i in range(4) if tensor.shape[i] > 1 and stride[i] != tensor.stride(i)]
    assert differing == []
