"""Sizes are written in canonical names and one normal form."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from torch_piecewise.errors import FingerprintError
from torch_piecewise.fingerprint.symbols import SymbolNames
from torch_piecewise.piece import IntSpec, Piece, Symbol, TensorSpec
from torch_piecewise.ranges import UNBOUNDED


def names(*dims: int | str, symbols: str = "s0 s77 u3", relations: tuple[str, ...] = ()) -> SymbolNames:
    declared = tuple(Symbol(name, 0, UNBOUNDED, 5) for name in symbols.split())
    inputs = tuple(IntSpec(dim) for dim in dims)
    return SymbolNames(Piece("p", 0, fx.GraphModule({}, fx.Graph()), inputs, declared, relations))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("s0", "d0"),
        ("s0 + 1", "d0 + 1"),
        ("1 + s0", "d0 + 1"),
        ("2*s77 + s0 - s77", "d0 + d1"),
        ("(s0 + 1)**2", "(d0 + 1)**2"),
        ("s0*s0", "d0**2"),
        ("s0/2", "d0/2"),
        ("-s0", "-d0"),
        ("s0 - 3", "d0 - 3"),
        ("s0//2", "FloorDiv(d0, 2)"),
        ("FloorDiv(s0, 2)", "FloorDiv(d0, 2)"),
        ("s0 % 8", "Mod(d0, 8)"),
        ("2**s0", "Pow(2, d0)"),
        ("s0/s77", "Div(d0, d1)"),
        ("Max(s77, 1, s0)", "Max(1, d0, d1)"),
        ("Eq(s77, s0)", "Eq(d0, d1)"),
        ("s77 == s0", "Eq(d0, d1)"),
        ("s77 > s0", "Lt(d0, d1)"),
        ("s77 >= s0", "Le(d0, d1)"),
        ("0 <= s0 < 9", "And(Le(0, d0), Lt(d0, 9))"),
        ("s0 > 1 and s77 != 2", "And(Lt(1, d0), Ne(2, d1))"),
        ("not s0 < 1", "Not(Lt(d0, 1))"),
        ("s0 <= int_oo", "Le(d0, int_oo)"),
        ("ModularIndexing(s0, 1, 8)", "ModularIndexing(d0, 1, 8)"),
    ],
)
def test_an_expression_has_a_normal_form(text: str, canonical: str) -> None:
    assert names("s0", "s77").text(text) == canonical


UNLIKE = [
    1, 2, "s0", "s77", "2*s0", "s0 + 1", "s0//2", "s0/2", "s0 % 2", "(s0//2)*2", "s0//2*2 + 1", "Max(s0, 2)",
    "Min(s0, 2)", "s0 < 2", "s0 <= 2", "s0 > 2", "Ne(s0, 2)", "Eq(s0, 2)", "s0*s77", "s0**2", "s0**s77",
    "s0 - s77", "s77 - s0", "s0//s77", "s77//s0", "s0 < s77", "s77 < s0",
]  # fmt: skip


def test_unlike_expressions_have_unlike_texts() -> None:
    known = names("s0", "s77")
    assert len({known.text(dim) for dim in UNLIKE}) == len(UNLIKE)


def test_symbols_are_numbered_by_first_mention_alone_then_inside_expressions() -> None:
    assert names("2*s77 + u3", "s0").text("s0") == "d0"
    assert names("2*s77 + u3", "s0").text("s77") == "d1"
    assert names("s77", "s0").text("s0") == "d1"
    assert names("s0").text("u3") == "d2"


def test_the_order_of_declaration_does_not_count_for_mentioned_symbols() -> None:
    one = names("s77", "s0", "u3", symbols="s0 s77 u3")
    assert one.lines() == names("s77", "s0", "u3", symbols="u3 s77 s0").lines()


def test_sizes_strides_and_offsets_are_mentions() -> None:
    device = torch.device("cpu")
    spec = TensorSpec(torch.float32, device, (1,), ("s2",), "s1")
    symbols = tuple(Symbol(name, 0, 9, 5) for name in ("s0", "s1", "s2"))
    known = SymbolNames(Piece("p", 0, fx.GraphModule({}, fx.Graph()), (spec,), symbols))
    assert known.dims(("s2", "s1", "s0", 4)) == "(d0, d1, d2, 4)"


def test_relations_are_a_set() -> None:
    one = names("s0", "s77", relations=("s0 < s77", "s0 > 1", "s77 > s0"))
    assert one.lines() == names("s0", "s77", relations=("1 < s0", "s0 < s77")).lines()


@pytest.mark.parametrize(
    "text", ["s5", "s0 +", "f.g(s0)", "s0[1]", "'a'", "lambda: s0", "s0 if s0 else 1", ""]
)
def test_what_is_no_expression_over_the_symbols_is_refused(text: str) -> None:
    with pytest.raises(FingerprintError) as caught:
        names("s0").text(text)
    assert "Piece p" in str(caught.value)
