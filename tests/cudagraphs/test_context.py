"""Contexts belong to a thread, nest, and end."""

from __future__ import annotations

import threading

import pytest

from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs import (
    BatchDescriptor,
    capture_phase,
    current_forward_context,
    forward_context,
    in_capture_phase,
)
from torch_piecewise.errors import ConfigError


def test_there_is_no_context_by_default():
    assert current_forward_context() is None
    assert not in_capture_phase()


def test_the_innermost_context_counts_and_the_outer_one_returns():
    with forward_context(CUDAGraphMode.FULL, BatchDescriptor(8)) as outer:
        with forward_context(CUDAGraphMode.NONE, BatchDescriptor(3)):
            assert current_forward_context().descriptor.num_tokens == 3
        assert current_forward_context() is outer
    assert current_forward_context() is None


def test_a_context_ends_with_an_exception():
    with pytest.raises(KeyError), forward_context(CUDAGraphMode.FULL, BatchDescriptor(8)), capture_phase():
        raise KeyError
    assert current_forward_context() is None
    assert not in_capture_phase()


def test_other_threads_do_not_see_it():
    seen = []
    with forward_context(CUDAGraphMode.FULL, BatchDescriptor(8)), capture_phase():
        thread = threading.Thread(target=lambda: seen.extend([current_forward_context(), in_capture_phase()]))
        thread.start()
        thread.join()
    assert seen == [None, False]


def test_a_policy_is_no_decision():
    with (
        pytest.raises(ConfigError, match="a policy instead of a decision"),
        forward_context(CUDAGraphMode.FULL_AND_PIECEWISE, BatchDescriptor(1)),
    ):
        pass


def test_a_descriptor_has_the_fields_of_the_contract():
    assert BatchDescriptor(4) == BatchDescriptor(
        num_tokens=4, num_reqs=None, uniform=False, has_lora=False, num_active_loras=0
    )
    full = BatchDescriptor(8, 4, True, True, 2)
    assert full.relaxed() == BatchDescriptor(8, has_lora=True, num_active_loras=2)


@pytest.mark.parametrize("wrong", [{"num_tokens": -1}, {"num_tokens": 1, "num_active_loras": 2}])
def test_a_descriptor_that_contradicts_itself_is_refused(wrong):
    with pytest.raises(ConfigError):
        BatchDescriptor(**wrong)
