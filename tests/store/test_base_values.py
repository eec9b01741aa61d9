from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_piecewise.errors import StoreError
from torch_piecewise.store import Hit, Namespace
from torch_piecewise.store.base import canonical_json, is_digest


@given(st.text(), st.text())
def test_different_tags_have_different_folders(left, right):
    same = Namespace(left).folder_name() == Namespace(right).folder_name()
    assert same == (left == right)


@given(st.text(), st.integers(0, 7), st.integers(1, 8))
def test_a_namespace_is_one_harmless_path_component(tag, rank, world_size):
    name = Namespace(tag, rank, world_size).folder_name()
    assert "/" not in name
    assert "\\" not in name
    assert "\0" not in name
    assert not name.startswith(".")
    assert len(name.encode()) < 200


def test_ranks_have_different_folders():
    assert Namespace("a", 0, 2).folder_name() != Namespace("a", 1, 2).folder_name()
    assert Namespace("a", 0, 2).folder_name() != Namespace("a", 0, 1).folder_name()


def test_a_kept_none_is_a_hit():
    assert Hit(None) == Hit(None)
    assert Hit(None) is not None


def test_canonical_json_does_not_depend_on_the_order_of_a_dictionary():
    assert canonical_json({"b": 1, "a": [1.5, "ä"]}) == canonical_json({"a": [1.5, "ä"], "b": 1})


@pytest.mark.parametrize("bad", [float("nan"), b"bytes", object(), {1, 2}])
def test_canonical_json_refuses_what_json_cannot_say(bad):
    with pytest.raises(StoreError, match="not JSON"):
        canonical_json([bad])


@pytest.mark.parametrize("text", ["a" * 63, "a" * 65, "A" * 64, "a" * 64 + "\n", 5, None])
def test_only_64_lower_case_digits_are_a_digest(text):
    assert not is_digest(text)
