"""What ``torch-piecewise demo`` prints."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from torch_piecewise.demo.base import CacheOverflow
from torch_piecewise.demo.command import Engine, run
from torch_piecewise.demo.engine import Facts
from torch_piecewise.demo.generate import Generation, generate, step_of
from torch_piecewise.demo.model import Llama
from torch_piecewise.demo.table import Run, print_table
from torch_piecewise.demo.text import Chat
from torch_piecewise.demo.weights import load_llama

FACTS = Facts(pieces=3, distinct_pieces=2, compile_seconds=1.25)


def engine(compile: Callable[[Llama], None]) -> Engine:
    return Engine(compile=compile, facts=lambda model: FACTS)


def leave_alone(model: Llama) -> None:
    pass


def rows(text: str) -> dict[str, list[str]]:
    """The table's cells by the name of their row."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    return {cells[0]: cells[1:] for cells in lines}


def test_the_answer_is_streamed_as_it_comes_and_then_the_table_follows(folder: Path) -> None:
    out = io.StringIO()
    seen_before_the_table: list[str] = []

    def facts(model: Llama) -> Facts:
        seen_before_the_table.append(out.getvalue())
        return FACTS

    assert run("hello", new_tokens=12, out=out, folder=folder, using=Engine(leave_alone, facts))
    chat = Chat.load(folder)
    model = load_llama(folder, capacity=64)
    tokens = generate(step_of(model), chat.prompt("hello"), new_tokens=12, stop=chat.stop).tokens
    assert seen_before_the_table[0] == chat.tokenizer.decode(list(tokens)) + "\n\n"
    assert "3 pieces, 2 distinct, compiled in 1.2 s" in out.getvalue()


def test_every_way_of_running_has_a_row(folder: Path) -> None:
    out = io.StringIO()
    run(None, new_tokens=3, out=out, folder=folder, using=engine(leave_alone))
    table = rows(out.getvalue())
    same = {name: cells[2] for name, cells in table.items()}
    assert same == {
        "transformers, eager, growing cache": "yes",
        "transformers, eager, static cache": "yes",
        "this model, eager": "yes",
        "this model, in pieces": "",
    }
    assert all(float(cells[1]) > 0 for cells in table.values())


def test_without_comparisons_only_the_compiled_model_runs(folder: Path) -> None:
    out = io.StringIO()
    assert run("x", new_tokens=3, out=out, compare=False, folder=folder, using=engine(leave_alone))
    assert list(rows(out.getvalue())) == ["this model, in pieces"]


def test_a_compiled_model_that_answers_differently_is_called_out(folder: Path) -> None:
    def spoil(model: Llama) -> None:
        with torch.no_grad():
            model.norm.weight.neg_()

    out = io.StringIO()
    assert not run("x", new_tokens=3, out=out, folder=folder, using=engine(spoil))
    assert rows(out.getvalue())["this model, eager"][2] == "NO, from token 1"


def test_a_prompt_that_cannot_fit_is_refused_before_anything_is_compiled(folder: Path) -> None:
    def refuse(model: Llama) -> None:
        raise AssertionError("compiled")

    with pytest.raises(CacheOverflow, match="too long"):
        run("x" * 3000, out=io.StringIO(), folder=folder, using=engine(refuse))


def test_the_start_is_everything_until_the_second_token() -> None:
    assert Run("x", Generation((1, 2, 3), (4.0, 2.0, 1.0)), setup_seconds=0.5).start_seconds == 6.5


def test_an_answer_of_one_token_has_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    print_table(FACTS, Run("only", Generation((1,), (4.0,))), [], out=out)
    assert rows(out.getvalue())["only"] == ["4.0", "", ""]
