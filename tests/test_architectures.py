"""The table of architectures: each row compiles and agrees with eager."""

from __future__ import annotations

import pytest
from architecture_models import ARCHITECTURES
from architectures import Outcome, table, try_architecture

BY_NAME = {one.name: one for one in ARCHITECTURES}


def test_every_architecture_is_listed_once() -> None:
    assert len(BY_NAME) == len(ARCHITECTURES) >= 30


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_it_compiles_and_agrees_with_eager(name: str) -> None:
    outcome = try_architecture(BY_NAME[name])
    assert outcome.agrees, outcome


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.parametrize("name", ["Llama", "BERT", "ViT"])
def test_it_agrees_with_eager_when_inductor_compiles_it(name: str) -> None:
    assert try_architecture(BY_NAME[name], "inductor").agrees


def test_a_row_says_whether_how_and_why_not() -> None:
    page = table(
        [
            Outcome("Good", "compile_causal_lm", 4, 3, 3, 2e-7, True),
            Outcome("Other tokens", "compile", 1, 1, 0, 0.0, False),
            Outcome("Far off", "compile", 1, 1, 0, 0.5),
            Outcome("Refused", note="a | b"),
        ]
    )
    assert "1 of 4 compile and agree with eager" in " ".join(page.split())
    assert page.splitlines()[-4:] == [
        "| Good | yes | `compile_causal_lm` | 4 | 3 | 3 | 2e-07 |  |",
        "| Other tokens | NO | `compile` | 1 | 1 | 0 | 0 |  |",
        "| Far off | NO | `compile` | 1 | 1 | 0 | 5e-01 |  |",
        "| Refused | runs eagerly |  |  |  |  |  | a / b |",
    ]
