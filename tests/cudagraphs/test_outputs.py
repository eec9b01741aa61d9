"""Results a caller keeps are copied or the next replay is refused."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch

from torch_piecewise.cudagraphs import Extent, OutputPolicy
from torch_piecewise.cudagraphs.outputs import StaticOutputs
from torch_piecewise.errors import StaticGraphError


def test_copies_do_not_change_when_the_memory_does():
    static = torch.ones(2)
    outputs = StaticOutputs((static, None), OutputPolicy.COPY)
    got, nothing = outputs.hand_out()
    static.fill_(5)
    assert (got.tolist(), nothing) == ([1, 1], None)
    outputs.refuse_if_held()


def test_what_lies_in_the_callers_memory_is_handed_out_itself():
    cache = torch.ones(2)
    lasting = frozenset([cache.untyped_storage().data_ptr()])
    (got,) = StaticOutputs((cache,), OutputPolicy.COPY, lasting).hand_out()
    assert got is cache


def test_refuse_notices_a_result_that_is_still_held():
    outputs = StaticOutputs([torch.ones(2), torch.ones(3)], OutputPolicy.REFUSE)
    kept = outputs.hand_out()[1]
    with pytest.raises(StaticGraphError, match="still held"):
        outputs.refuse_if_held()
    del kept
    outputs.refuse_if_held()


def test_refuse_notices_a_view_of_a_result():
    outputs = StaticOutputs(torch.ones(2, 3), OutputPolicy.REFUSE)
    view = outputs.hand_out().t()[1:]
    with pytest.raises(StaticGraphError, match=r"\.clone\(\)"):
        outputs.refuse_if_held()
    del view
    outputs.refuse_if_held()


def test_refuse_notices_results_that_share_memory_and_were_cut_back():
    static = torch.zeros(8, 2)
    outputs = StaticOutputs(
        (static, static[:, 1]), OutputPolicy.REFUSE, captured_size=8, extents={0: [Extent(0)], 1: [Extent(0)]}
    )
    a, b = outputs.hand_out(3)
    assert (a.shape, b.shape) == ((3, 2), (3,))
    del a
    with pytest.raises(StaticGraphError):
        outputs.refuse_if_held()
    del b
    outputs.refuse_if_held()
    assert outputs.hand_out(5)[0].shape == (5, 2)
    outputs.refuse_if_held()


def test_borrowed_results_are_the_memory_itself():
    static = torch.ones(2)
    outputs = StaticOutputs(static, OutputPolicy.BORROW)
    assert outputs.hand_out() is static
    outputs.refuse_if_held()


def test_results_are_cut_back_at_the_declared_dims():
    static = torch.arange(24.0).view(2, 12)
    outputs = StaticOutputs(
        {"x": static, "rows": torch.arange(5)},
        OutputPolicy.COPY,
        captured_size=4,
        extents={0: [Extent(-1, scale=3)], 1: [Extent(0, offset=1)]},
    )
    got = outputs.hand_out(2)
    assert torch.equal(got["x"], static[:, :6])
    assert got["rows"].tolist() == [0, 1, 2]
    assert outputs.hand_out(4)["x"].shape == (2, 12)


def test_numbers_that_follow_the_size_do():
    outputs = StaticOutputs(
        (torch.ones(8), 17, 8), OutputPolicy.COPY, captured_size=8, extents={1: [Extent(0, 2, 1)], 2: ()}
    )
    assert outputs.hand_out(3)[1:] == (7, 8)


def test_numbers_nobody_declared_are_refused():
    with pytest.raises(StaticGraphError, match="Output 1 of a captured call is a number"):
        StaticOutputs((torch.ones(8), 8), OutputPolicy.COPY, captured_size=8)
    StaticOutputs((torch.ones(8), 8, True), OutputPolicy.COPY)


def test_objects_that_may_hide_tensors_are_refused():
    class Cache:
        pass

    with pytest.raises(StaticGraphError, match="Cache"):
        StaticOutputs((Cache(),), OutputPolicy.COPY)


@pytest.mark.parametrize("make", [list, tuple, lambda items: {"a": tuple(items)}, lambda items: Pair(*items)])
def test_containers_come_back_as_they_were(make):
    tree = make([torch.ones(1), torch.zeros(2)])
    got = StaticOutputs(tree, OutputPolicy.COPY).hand_out()
    assert type(got) is type(tree)
    assert str(got) == str(tree)


Pair = namedtuple("Pair", "first second")
