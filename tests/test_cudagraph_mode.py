"""The questions code asks of a static-graph mode, answered for each mode."""

from __future__ import annotations

import pickle

import pytest

from torch_piecewise.cudagraph_mode import CUDAGraphMode

NONE = CUDAGraphMode.NONE
PIECEWISE = CUDAGraphMode.PIECEWISE
FULL = CUDAGraphMode.FULL
FULL_DECODE_ONLY = CUDAGraphMode.FULL_DECODE_ONLY
FULL_AND_PIECEWISE = CUDAGraphMode.FULL_AND_PIECEWISE


def test_there_are_five_modes():
    assert list(CUDAGraphMode) == [NONE, PIECEWISE, FULL, FULL_DECODE_ONLY, FULL_AND_PIECEWISE]


@pytest.mark.parametrize(
    ("mode", "decode", "mixed", "largest"),
    [
        (NONE, NONE, NONE, NONE),
        (PIECEWISE, PIECEWISE, PIECEWISE, PIECEWISE),
        (FULL, FULL, FULL, FULL),
        (FULL_DECODE_ONLY, FULL, NONE, FULL),
        (FULL_AND_PIECEWISE, FULL, PIECEWISE, FULL),
    ],
)
def test_each_mode_says_what_decode_and_mixed_batches_do(mode, decode, mixed, largest):
    assert mode.decode_mode() is decode
    assert mode.mixed_mode() is mixed
    assert mode.max_cudagraph_mode() is largest
    assert mode.separate_routine() == (decode is not mixed)


@pytest.mark.parametrize(
    ("mode", "pieces", "whole"),
    [
        (NONE, False, False),
        (PIECEWISE, True, False),
        (FULL, False, True),
        (FULL_DECODE_ONLY, False, True),
        (FULL_AND_PIECEWISE, True, True),
    ],
)
def test_each_mode_says_what_it_captures(mode, pieces, whole):
    assert mode.has_piecewise_cudagraphs() == pieces
    assert mode.requires_piecewise_compilation() == pieces
    assert mode.has_full_cudagraphs() == whole


@pytest.mark.parametrize("mode", CUDAGraphMode)
def test_a_mode_has_exactly_its_decode_and_mixed_mode(mode):
    had = {plain for plain in (NONE, PIECEWISE, FULL) if mode.has_mode(plain)}
    assert had == {mode.decode_mode(), mode.mixed_mode()}


@pytest.mark.parametrize("mode", CUDAGraphMode)
def test_only_none_is_false_and_each_is_shown_by_its_name(mode):
    assert bool(mode) == (mode is not NONE)
    assert str(mode) == mode.name


@pytest.mark.parametrize("mode", CUDAGraphMode)
def test_a_mode_stays_itself_across_processes(mode):
    assert pickle.loads(pickle.dumps(mode)) is mode
