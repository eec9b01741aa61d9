"""Which graph serves which batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs import BatchDescriptor, CUDAGraphDispatcher, default_capture_sizes
from torch_piecewise.errors import ConfigError

NONE, PIECEWISE, FULL = CUDAGraphMode.NONE, CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL


def served(dispatcher, num_tokens, **fields):
    mode, descriptor = dispatcher.dispatch(BatchDescriptor(num_tokens, **fields))
    return mode, descriptor.num_tokens


def test_a_batch_is_padded_to_the_next_captured_size():
    dispatcher = CUDAGraphDispatcher(PIECEWISE, [8, 1, 4, 4])
    assert [dispatcher.padded(n) for n in (1, 2, 4, 5, 8)] == [1, 4, 4, 8, 8]


def test_batches_beyond_the_largest_size_and_empty_ones_are_not_served():
    dispatcher = CUDAGraphDispatcher(PIECEWISE, [4, 8])
    assert dispatcher.dispatch(BatchDescriptor(9)) == (NONE, BatchDescriptor(9))
    assert served(dispatcher, 0) == (NONE, 0)
    assert dispatcher.padded(9) is None


@pytest.mark.parametrize(
    ("policy", "mixed", "uniform"),
    [
        (CUDAGraphMode.NONE, NONE, NONE),
        (CUDAGraphMode.PIECEWISE, PIECEWISE, PIECEWISE),
        (CUDAGraphMode.FULL, FULL, FULL),
        (CUDAGraphMode.FULL_DECODE_ONLY, NONE, FULL),
        (CUDAGraphMode.FULL_AND_PIECEWISE, PIECEWISE, FULL),
    ],
)
def test_each_policy_treats_mixed_and_uniform_batches_as_it_says(policy, mixed, uniform):
    dispatcher = CUDAGraphDispatcher(policy, [4, 8])
    assert served(dispatcher, 3)[0] is mixed
    assert served(dispatcher, 3, uniform=True)[0] is uniform


def test_a_uniform_batch_without_room_in_a_full_graph_falls_back_to_pieces():
    dispatcher = CUDAGraphDispatcher(CUDAGraphMode.FULL_AND_PIECEWISE, [4, 8, 16], max_num_reqs=8)
    assert served(dispatcher, 8, uniform=True) == (FULL, 8)
    assert served(dispatcher, 9, uniform=True) == (PIECEWISE, 16)


def test_full_can_be_ruled_out_for_one_batch():
    dispatcher = CUDAGraphDispatcher(CUDAGraphMode.FULL_AND_PIECEWISE, [4])
    batch = BatchDescriptor(4, uniform=True)
    assert dispatcher.dispatch(batch).mode is FULL
    assert dispatcher.dispatch(batch, allow_full=False).mode is PIECEWISE


def test_a_uniform_graph_serves_only_its_own_number_of_tokens_a_request():
    dispatcher = CUDAGraphDispatcher(CUDAGraphMode.FULL_DECODE_ONLY, [2, 3, 4, 8], tokens_per_request=2)
    full = dispatcher.dispatch(BatchDescriptor(6, num_reqs=3, uniform=True))
    assert full == (FULL, BatchDescriptor(8, num_reqs=4, uniform=True))
    assert served(dispatcher, 6, num_reqs=6, uniform=True)[0] is NONE
    assert served(dispatcher, 3, uniform=True)[0] is NONE
    assert served(dispatcher, 2, uniform=True) == (FULL, 2)


def test_adapters_are_padded_to_the_next_captured_count():
    dispatcher = CUDAGraphDispatcher(PIECEWISE, [4], lora_counts=[0, 1, 4])
    found = dispatcher.dispatch(BatchDescriptor(3, has_lora=True, num_active_loras=2))
    assert found == (PIECEWISE, BatchDescriptor(4, has_lora=True, num_active_loras=4))
    assert dispatcher.dispatch(BatchDescriptor(3)).descriptor == BatchDescriptor(4)
    assert served(dispatcher, 3, has_lora=True, num_active_loras=5)[0] is NONE


def test_without_adapters_registered_a_batch_with_one_is_not_served():
    assert served(CUDAGraphDispatcher(PIECEWISE, [4]), 3, has_lora=True, num_active_loras=1)[0] is NONE


def test_keys_can_come_and_go():
    dispatcher = CUDAGraphDispatcher(PIECEWISE, [8])
    key = BatchDescriptor(4, num_reqs=2)
    dispatcher.register(FULL, key)
    dispatcher.register(FULL, key)
    assert dispatcher.dispatch(BatchDescriptor(3, num_reqs=2)) == (FULL, key)
    assert served(dispatcher, 3, num_reqs=3) == (PIECEWISE, 8)
    assert served(dispatcher, 3) == (PIECEWISE, 8)
    dispatcher.unregister(FULL, key)
    dispatcher.unregister(FULL, key)
    assert served(dispatcher, 3, num_reqs=2) == (PIECEWISE, 8)


def test_the_largest_is_captured_first():
    dispatcher = CUDAGraphDispatcher(CUDAGraphMode.FULL_AND_PIECEWISE, [1, 8, 4], max_num_reqs=4)
    order = [(mode, descriptor.num_tokens) for mode, descriptor in dispatcher.capture_order()]
    assert order == [(PIECEWISE, 8), (FULL, 4), (PIECEWISE, 4), (FULL, 1), (PIECEWISE, 1)]


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "4"])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ConfigError, match="capture size"):
        CUDAGraphDispatcher(PIECEWISE, [size])


def test_a_combined_mode_is_no_mode_to_capture_in():
    with pytest.raises(ConfigError, match="FULL or as PIECEWISE"):
        CUDAGraphDispatcher(PIECEWISE).register(CUDAGraphMode.FULL_DECODE_ONLY, BatchDescriptor(1))


@given(st.sets(st.integers(1, 300), min_size=1), st.integers(0, 400))
def test_padding_finds_the_smallest_size_with_room(sizes, num_tokens):
    expected = min((size for size in sizes if size >= num_tokens), default=None) if num_tokens else None
    assert CUDAGraphDispatcher(PIECEWISE, sizes).padded(num_tokens) == expected


@given(
    st.sampled_from(list(CUDAGraphMode)),
    st.sets(st.integers(1, 64), max_size=8),
    st.integers(1, 3),
    st.integers(0, 70),
    st.booleans(),
)
def test_what_serves_has_room_and_is_registered(policy, sizes, per_request, num_tokens, uniform):
    dispatcher = CUDAGraphDispatcher(policy, sizes, tokens_per_request=per_request)
    mode, descriptor = dispatcher.dispatch(BatchDescriptor(num_tokens, uniform=uniform))
    if mode:
        assert (mode, descriptor) in dispatcher.capture_order()
        assert descriptor.num_tokens >= num_tokens
        assert policy.has_mode(mode)
    else:
        assert descriptor == BatchDescriptor(num_tokens, uniform=uniform)


def test_the_default_sizes_up_to_256_are_35():
    sizes = default_capture_sizes(256)
    assert len(sizes) == 35
    assert sizes[:4] == (1, 2, 4, 8)
    assert default_capture_sizes(300)[-3:] == (272, 288, 300)
    assert default_capture_sizes(3) == (1, 2, 3)
