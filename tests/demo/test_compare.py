"""``python -m torch_piecewise.demo.compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_piecewise.demo.baselines import growing_cache
from torch_piecewise.demo.compare import compare, main, prompts
from torch_piecewise.demo.generate import step_of
from torch_piecewise.demo.model import Llama
from torch_piecewise.demo.text import Chat


def test_prompts_are_different_and_reach_from_the_shortest_to_the_longest(folder: Path) -> None:
    made = list(prompts(Chat.load(folder), 20, shortest=1, longest=600))
    assert (len(made[0]), len(made[-1])) == (1, 600)
    assert len({len(prompt) for prompt in made}) == 20
    assert all(all(isinstance(token, int) for token in prompt) for prompt in made)


def test_the_same_tokens_are_no_difference(ours: Llama, theirs: Any) -> None:
    result = compare(step_of(ours), growing_cache(theirs), [1, 2, 3], 8)
    assert (result.length, result.made, result.differs_at, result.gap) == (3, 8, None, None)


def test_a_difference_is_placed_and_its_logits_are_compared(ours: Llama, theirs: Any) -> None:
    right = step_of(ours)

    def wrong(input_ids: Tensor, past: int) -> Tensor:
        logits = right(input_ids, past)
        return logits if past < 5 else -logits

    result = compare(wrong, growing_cache(theirs), [1, 2, 3], 8)
    assert result.differs_at == 3
    assert result.gap is not None
    assert result.gap > 0


def test_the_command_says_what_came_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.no_grad():
        assert main(["--prompts", "3", "--tokens", "4", "--longest", "20", "--folder", str(folder)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "prompt of 1 tokens, 4 new: the same"
    assert printed[-1] == "3 of 3 prompts gave the same tokens"
