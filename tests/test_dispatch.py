from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_piecewise.dispatch import SizeTable, reachable, serving_range
from torch_piecewise.errors import DispatchError
from torch_piecewise.ranges import UNBOUNDED, Range, ranges_from_endpoints


def test_an_exact_size_beats_the_range_that_contains_it() -> None:
    ranges = ranges_from_endpoints([8, 64])
    assert serving_range(4, ranges, exact=(4,)) == Range(4, 4)
    assert serving_range(5, ranges, exact=(4,)) == Range(1, 8)


def test_sizes_beyond_the_last_endpoint_are_served() -> None:
    assert serving_range(10**9, ranges_from_endpoints([8])).start == 9


def test_size_zero_belongs_to_the_first_range() -> None:
    assert serving_range(0, ranges_from_endpoints([8])) == Range(1, 8)
    assert serving_range(0, ranges_from_endpoints([8]), exact=(0, 4)) == Range(0, 0)
    assert serving_range(0, ranges_from_endpoints([])) == Range(1, UNBOUNDED)


def test_size_zero_is_not_served_by_what_is_compiled_for_size_one_alone() -> None:
    assert serving_range(0, ranges_from_endpoints([1, 8])) == Range(0, 0)
    assert serving_range(1, ranges_from_endpoints([1, 8])) == Range(1, 1)
    assert serving_range(0, ranges_from_endpoints([1, 8])[1:]) == Range(0, 0)


def test_a_size_with_no_range_is_named_with_the_ranges_there_are() -> None:
    with pytest.raises(DispatchError) as caught:
        serving_range(9, [Range(1, 4), Range(6, 8)], exact=(12,))
    assert str(caught.value) == (
        "No compiled range serves size 9\n"
        "  expected: a size in [1, 4], [6, 8] or one of 12\n"
        "  got: 9\n"
        "  to do: add an endpoint to compile_ranges_endpoints, or the size to compile_sizes"
    )


@given(
    st.lists(st.integers(1, 100), max_size=6), st.lists(st.integers(0, 120), max_size=4), st.integers(0, 200)
)
def test_every_size_is_served_by_a_range_that_holds_it(ends: list[int], exact: list[int], size: int) -> None:
    serving = serving_range(size, ranges_from_endpoints(ends), tuple(exact))
    assert max(size, 1) in serving or size in serving
    assert serving.is_single_size() or size not in exact


def test_a_table_resolves_each_size_once_and_stays_bounded() -> None:
    asked: list[int] = []
    table: SizeTable[int, str] = SizeTable(lambda key: asked.append(key) or f"v{key}", limit=3)
    assert [table.find(1), table.find(1), table.find(2)] == ["v1", "v1", "v2"]
    assert asked == [1, 2]
    assert table.lookup(2) == "v2"
    assert table.lookup(3) is None
    for key in range(10):
        table.find(key)
        assert len(table) <= 3
    table.forget()
    assert len(table) == 0


@pytest.mark.parametrize(
    ("bounds", "admits", "ranges", "exact"),
    [
        (Range(0, UNBOUNDED), lambda n: True, ["[1, 8]", "[9, 64]", "[65, inf]"], (1, 12)),
        (Range(1, 1), lambda n: True, ["[1, 8]"], (1,)),
        (Range(2, UNBOUNDED), lambda n: n != 1, ["[1, 8]", "[9, 64]", "[65, inf]"], (12,)),
        (Range(12, 20), lambda n: True, ["[9, 64]"], (12,)),
        (Range(0, UNBOUNDED), lambda n: n % 10 == 0 and n > 0, ["[9, 64]", "[65, inf]"], ()),
        (Range(0, UNBOUNDED), lambda n: n > 9 and n % 10**6 == 0, ["[65, inf]"], ()),
        (Range(0, 0), lambda n: True, ["[1, 8]"], ()),
        (Range(0, UNBOUNDED), lambda n: n == 0 or n > 8, ["[1, 8]", "[9, 64]", "[65, inf]"], (12,)),
    ],
)
def test_what_calls_of_a_trace_cannot_have_is_left_out(
    bounds: Range, admits: Callable[[int], bool], ranges: list[str], exact: tuple[int, ...]
) -> None:
    kept, sizes = reachable(ranges_from_endpoints([8, 64]), (1, 12), bounds, admits)
    assert [str(one) for one in kept] == ranges
    assert sizes == exact


def test_what_is_traced_for_size_zero_alone_is_compiled_for_it() -> None:
    assert reachable(ranges_from_endpoints([1, 8]), (), Range(0, 0), lambda n: True) == ((), (0,))
    assert reachable(ranges_from_endpoints([1]), (), Range(0, 4), lambda n: n != 1)[1] == ()


@given(
    st.lists(st.integers(1, 60), max_size=4),
    st.lists(st.integers(0, 60), max_size=4),
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(1, 4),
    st.integers(0, 60),
)
def test_what_a_trace_admits_is_served_as_before(
    ends: list[int], exact: list[int], first: int, width: int, step: int, size: int
) -> None:
    ranges, bounds = ranges_from_endpoints(ends), Range(first, first + width)
    kept, sizes = reachable(ranges, exact, bounds, lambda n: n % step == 0)
    if size in bounds and size % step == 0:
        before, now = serving_range(size, ranges, exact), serving_range(size, kept, sizes)
        assert now == before
