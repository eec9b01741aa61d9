from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from torch_piecewise.cache_key import Absent, Difference, Ingredient, Key, differences, explain_miss, nearest


@dataclass(frozen=True)
class Kept:
    key: str
    ingredients: list


def key(**values: object) -> Key:
    return Key.of(ingredients(values))


def ingredients(values: dict) -> tuple[Ingredient, ...]:
    return tuple(
        Ingredient(name, ingredients(value) if isinstance(value, dict) else value)
        for name, value in values.items()
    )


def kept(name: str = "ab" * 32, **values: object) -> Kept:
    return Kept(name, key(**values).as_json())


def paths(ours: Key, theirs: Key) -> list[str]:
    return [one.path for one in differences(ours.ingredients, theirs.ingredients)]


def test_equal_keys_do_not_differ():
    assert paths(key(a=1, b={"c": 2}), key(a=1, b={"c": 2})) == []


def test_a_difference_is_named_down_to_the_field():
    ours = key(torch="2.13", module={"layers.3": {"eps": 1e-06, "dim": 4}})
    theirs = key(torch="2.13", module={"layers.3": {"eps": 1e-05, "dim": 4}})
    (found,) = differences(ours.ingredients, theirs.ingredients)
    assert found == Difference("module.layers.3.eps", 1e-06, 1e-05)
    assert str(found) == "module.layers.3.eps: 1e-05 -> 1e-06"


def test_a_name_that_is_empty_leaves_no_dot():
    assert paths(key(module={"": {"eps": 1}}), key(module={"": {"eps": 2}})) == ["module.eps"]


def test_values_that_are_equal_for_python_but_not_for_the_digest_differ():
    assert paths(key(a=1, b=0.0, c=True), key(a=1.0, b=-0.0, c=1)) == ["a", "b", "c"]


def test_what_is_on_one_side_only_is_one_difference():
    ours = key(a=1, module={"new": {"x": 1, "y": 2}})
    theirs = key(a=1, module={"old": 3})
    assert differences(ours.ingredients, theirs.ingredients) == (
        Difference("module.new", ingredients({"x": 1, "y": 2}), Absent(), 2),
        Difference("module.old", Absent(), 3),
    )
    assert [str(one) for one in differences(ours.ingredients, theirs.ingredients)] == [
        "module.new: (none) -> (2 values)",
        "module.old: 3 -> (none)",
    ]


def test_a_changed_order_alone_is_named():
    assert paths(key(passes={"a": 1, "b": 2}), key(passes={"b": 2, "a": 1})) == ["passes.(order)"]


trees = st.recursive(
    st.integers(0, 2) | st.sampled_from(["x", None, True]),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from("abcd"), trees), st.dictionaries(st.sampled_from("abcd"), trees))
def test_keys_differ_somewhere_exactly_if_their_digests_differ(left, right):
    assert bool(paths(key(**left), key(**right))) == (key(**left).digest() != key(**right).digest())


def test_the_nearest_entry_is_the_one_with_the_fewest_kinds_of_differences():
    ours = key(tag="a", module={"x": 1, "y": 1, "z": 1}, threads=2)
    other_tag_and_threads = kept("1" * 64, tag="b", module={"x": 1, "y": 1, "z": 1}, threads=4)
    same_but_three_attributes = kept("2" * 64, tag="a", module={"x": 0, "y": 0, "z": 0}, threads=2)
    same_but_one_attribute = kept("3" * 64, tag="a", module={"x": 1, "y": 1, "z": 0}, threads=2)
    found = nearest(ours, [other_tag_and_threads, same_but_three_attributes, same_but_one_attribute])
    assert found.entry.key == "3" * 64
    assert [str(one) for one in found.differences] == ["module.z: 0 -> 1"]
    found = nearest(ours, [other_tag_and_threads, same_but_three_attributes])
    assert found.entry.key == "2" * 64


def test_of_equally_near_entries_the_first_one_counts():
    found = nearest(key(a=1), [kept("1" * 64, a=2), kept("2" * 64, a=3)])
    assert found.entry.key == "1" * 64


def test_an_entry_whose_ingredients_cannot_be_understood_is_no_candidate():
    assert nearest(key(a=1), [Kept("1" * 64, [["a", {"b": 1}]])]) is None


def test_a_miss_is_explained_in_one_line():
    found = nearest(key(torch="2.13", eps=1e-06), [kept(torch="2.13", eps=1e-05)])
    assert explain_miss("program 'backbone'", found) == (
        "no program 'backbone' in the store: the nearest entry abababababab differs in eps: 1e-05 -> 1e-06"
    )


def test_an_empty_store_is_explained():
    assert explain_miss("program 'backbone'", None) == (
        "no program 'backbone' in the store: it has nothing of the kind yet"
    )


def test_an_equal_entry_is_explained_by_damage():
    text = explain_miss("piece", nearest(key(a=1), [kept(a=1)]))
    assert "same ingredients" in text
    assert "removed or damaged" in text


def test_only_the_first_differences_are_spelled_out():
    ours, theirs = {f"f{i}": 1 for i in range(6)}, {f"f{i}": 2 for i in range(6)}
    text = explain_miss("piece", nearest(key(**ours), [kept(**theirs)]), at_most=2)
    assert text.endswith("differs in f0: 2 -> 1; f1: 2 -> 1; and 4 more")
    assert "\n" not in text


def test_hashes_are_shown_short():
    (one,) = differences(key(f="sha256:" + "a" * 32).ingredients, key(f="sha256:" + "b" * 32).ingredients)
    assert str(one) == "f: sha256:bbbbbbbb -> sha256:aaaaaaaa"


def test_of_long_texts_the_part_that_differs_is_shown():
    head = "x" * 200
    (one,) = differences(
        key(f=head + "new" + "y" * 200).ingredients, key(f=head + "old" + "y" * 200).ingredients
    )
    assert "xold" in str(one)
    assert "xnew" in str(one)
    assert len(str(one)) < 200
