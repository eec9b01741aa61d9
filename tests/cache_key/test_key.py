from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_piecewise.cache_key import Ingredient, Key, ingredients_from_json
from torch_piecewise.errors import FingerprintError

names = st.text(min_size=1, max_size=4)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False)
)


def unique(pairs):
    return tuple(Ingredient(name, value) for name, value in dict(pairs).items())


values = st.recursive(
    scalars,
    lambda inner: st.lists(st.tuples(names, inner), max_size=3).map(unique),
    max_leaves=8,
)
keys = st.lists(st.tuples(names, values), max_size=4).map(unique).map(Key.of)


@given(keys)
def test_a_key_comes_back_from_json_with_the_same_digest(key):
    again = Key(ingredients_from_json(json.loads(json.dumps(key.as_json()))))
    assert again.digest() == key.digest()


@given(keys, keys)
def test_keys_of_different_spelling_have_different_digests(left, right):
    assert (left.digest() == right.digest()) == (json.dumps(left.as_json()) == json.dumps(right.as_json()))


@pytest.mark.parametrize(
    ("left", "right"),
    [(1, 1.0), (1, True), (0, False), (0.0, -0.0), ("1", 1), (None, "None"), ((), None), ("", None), (0, ())],
)
def test_values_that_python_or_people_confuse_are_told_apart(left, right):
    assert Key.of([Ingredient("x", left)]).digest() != Key.of([Ingredient("x", right)]).digest()


def test_order_counts():
    a, b = Ingredient("a", 1), Ingredient("b", 2)
    assert Key.of([a, b]).digest() != Key.of([b, a]).digest()


def test_nesting_counts():
    flat = Key.of([Ingredient("a", 1), Ingredient("b", 2)])
    nested = Key.of([Ingredient("a", (Ingredient("b", 2),))])
    assert flat.digest() != nested.digest()


def test_the_digest_is_pinned_as_kept_entries_depend_on_it():
    key = Key.of([Ingredient("torch", "2.13"), Ingredient("module", (Ingredient("eps", 1e-05),))])
    assert key.digest() == "815970d2d3c3dd1fee87704a0935491d079b7024cefa48f4aff2b21d04026249"


def test_two_ingredients_of_one_name_are_refused_with_their_path():
    inner = (Ingredient("x", 1), Ingredient("x", 2))
    with pytest.raises(FingerprintError, match=r"'module\.x'"):
        Key.of([Ingredient("module", inner)])
    with pytest.raises(FingerprintError, match="'a'"):
        Key.of([Ingredient("a", 1)]).and_(Ingredient("a", 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_float_that_json_cannot_say_is_refused(bad):
    with pytest.raises(FingerprintError, match="not finite"):
        Key.of([Ingredient("x", bad)])


@pytest.mark.parametrize("bad", [[1], ["ab"], [["a"]], [[1, 2]], [["a", {}]], [["a", 1, 2]], ["a", "b"]])
def test_a_mistyped_document_is_an_error_that_says_so(bad):
    with pytest.raises(FingerprintError, match="mistyped"):
        ingredients_from_json(bad)
