from __future__ import annotations

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, Mod

from torch_piecewise.relations import Relation


@pytest.mark.parametrize(
    ("text", "sizes", "holds"),
    [
        ("Eq(s0, 2*s1)", {"s0": 6, "s1": 3}, True),
        ("Ne(s0, 1)", {"s0": 1}, False),
        ("Eq(Mod(s0, 8), 0)", {"s0": 24}, True),
        ("(s0//2) >= 3", {"s0": 5}, False),
        ("(s0 > 1) & (s0 < 4)", {"s0": 4}, False),
        ("(s0 > 1) | (s1 > 1)", {"s0": 1, "s1": 2}, True),
        ("~(Eq(s0, 1))", {"s0": 2}, True),
        ("~(Eq(s0, 1))", {"s0": 1}, False),
        ("s0 <= int_oo", {"s0": 7}, True),
    ],
)
def test_a_relation_reads_as_sympy_means_it(text: str, sizes: dict[str, int], holds: bool) -> None:
    assert Relation(text).holds(sizes) is holds


def test_a_relation_about_unknown_symbols_counts_as_holding() -> None:
    assert Relation("Eq(s0, s9)").holds({"s0": 1})
    assert Relation("Eq(s0, s9)").symbols == {"s0", "s9"}


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 9), st.integers(1, 9))
def test_relations_agree_with_sympy(a: int, b: int, c: int, d: int) -> None:
    x, y = sympy.symbols("s0 s1", integer=True, nonnegative=True)
    for relation in (
        sympy.Eq(c * x + y, d * y),
        sympy.Ne(Mod(x, c), 0),
        FloorDiv(x + y, c) >= d,
        sympy.Max(x, y) < c * d,
    ):
        expected = bool(relation.subs({x: a, y: b}))
        assert Relation(str(relation)).holds({"s0": a, "s1": b}) is expected


def test_a_remainder_of_a_division_by_zero_does_not_hold() -> None:
    relation = Relation("Eq(Mod(12, s0), 0)")
    assert relation.holds({"s0": 4})
    assert not relation.holds({"s0": 0})
