"""Closed intervals of sizes, and how endpoints become ranges."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_piecewise.errors import ConfigError
from torch_piecewise.ranges import UNBOUNDED, Range, ranges_from_endpoints

sizes = st.integers(0, 10_000)
ranges = st.builds(lambda first, more: Range(first, first + more), sizes, sizes)


@given(ranges, sizes)
def test_both_ends_belong_to_a_range(interval, size):
    assert (size in interval) == (interval.start <= size <= interval.end)
    assert interval.start in interval
    assert interval.end in interval


@pytest.mark.parametrize("thing", [1.0, "1", None])
def test_what_is_no_integer_is_in_no_range(thing):
    assert thing not in Range(0, 8)


def test_a_range_of_one_size_says_so():
    assert Range(4, 4).is_single_size()
    assert not Range(4, 5).is_single_size()


def test_a_range_may_hold_size_zero():
    assert 0 in Range(0, 0)


@given(ranges, ranges)
def test_ranges_are_ordered_by_start_then_end(first, second):
    assert (first < second) == ((first.start, first.end) < (second.start, second.end))


def test_text_shows_both_ends_and_infinity():
    assert str(Range(1, 8)) == "[1, 8]"
    assert str(Range(9, UNBOUNDED)) == "[9, inf]"


@given(ranges)
def test_equal_ranges_are_one_key_also_after_pickling(interval):
    twin = pickle.loads(pickle.dumps(interval))
    assert {interval: 1}[twin] == 1


def test_a_range_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Range(1, 2).start = 0


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (4, 3)])
def test_an_empty_or_negative_range_is_an_error_with_its_ends(start, end):
    with pytest.raises(ConfigError, match=f"start={start}, end={end}"):
        Range(start, end)


@pytest.mark.parametrize(("name", "ends"), [("start", (True, 3)), ("end", (1, 3.0)), ("end", (1, "3"))])
def test_an_end_that_is_no_integer_is_an_error_that_names_it(name, ends):
    with pytest.raises(ConfigError, match=f"Range {name} is not an integer"):
        Range(*ends)


def test_endpoints_cut_after_themselves():
    assert ranges_from_endpoints((8, 64)) == (Range(1, 8), Range(9, 64), Range(65, UNBOUNDED))


def test_no_endpoints_give_one_open_range():
    assert ranges_from_endpoints(()) == (Range(1, UNBOUNDED),)


def test_the_first_range_starts_where_it_is_told():
    assert ranges_from_endpoints([0, 8], start=0)[:2] == (Range(0, 0), Range(1, 8))


@given(st.lists(st.integers(1, 500), max_size=8), st.integers(1, 1000))
def test_every_size_lies_in_exactly_one_range(endpoints, size):
    found = [interval for interval in ranges_from_endpoints(endpoints) if size in interval]
    assert len(found) == 1


@given(st.lists(st.integers(1, 500), max_size=8), st.randoms())
def test_order_and_repetition_of_endpoints_do_not_count(endpoints, random):
    shuffled = endpoints * 2
    random.shuffle(shuffled)
    assert ranges_from_endpoints(shuffled) == ranges_from_endpoints(endpoints)


def test_an_endpoint_below_the_start_is_an_error_that_names_field_and_value():
    with pytest.raises(ConfigError, match="compile_ranges_endpoints") as caught:
        ranges_from_endpoints([8, 0])
    assert caught.value.got == "0"
    assert caught.value.expected == "integers >= 1"
