"""The loop: what is fed, when it stops, what is timed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_piecewise.demo.base import CacheOverflow, DemoError
from torch_piecewise.demo.generate import Generation, check_length, first_difference, generate
from torch_piecewise.demo.model import Llama


class Counting:
    """A model whose next token is always the last one plus one; remembers what it was fed."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], int]] = []

    def __call__(self, input_ids: Tensor, past: int) -> Tensor:
        self.calls.append((input_ids.tolist(), past))
        return torch.nn.functional.one_hot(input_ids[-1] + 1, 100).float()


def test_the_prompt_is_fed_at_once_and_then_each_new_token_at_its_position() -> None:
    model = Counting()
    assert generate(model, [5, 6, 7], new_tokens=3).tokens == (8, 9, 10)
    assert model.calls == [([5, 6, 7], 0), ([8], 3), ([9], 4)]


def test_it_stops_after_a_stop_token_and_keeps_it() -> None:
    assert generate(Counting(), [5], new_tokens=50, stop={8}).tokens == (6, 7, 8)


def test_each_token_is_handed_on_as_soon_as_it_is_known() -> None:
    model, seen = Counting(), []
    generate(model, [5], new_tokens=3, on_token=lambda token: seen.append((token, len(model.calls))))
    assert seen == [(6, 1), (7, 2), (8, 3)]


def test_every_token_has_its_time() -> None:
    assert len(generate(Counting(), [5], new_tokens=4).seconds) == 4


def test_the_speed_is_that_of_the_median_decode_step() -> None:
    generation = Generation((1, 2, 3, 4), (9.0, 0.5, 0.25, 30.0))
    assert generation.prefill_seconds == 9.0
    assert generation.tokens_per_second == 2.0


def test_one_token_alone_has_no_decode_speed() -> None:
    assert Generation((1,), (9.0,)).tokens_per_second is None


@pytest.mark.parametrize(("prompt", "new_tokens"), [([], 4), ([1], 0), ([1], -1)])
def test_nothing_to_start_from_or_to_make_is_an_error(prompt: list[int], new_tokens: int) -> None:
    with pytest.raises(DemoError, match="nothing to generate"):
        generate(Counting(), prompt, new_tokens=new_tokens)


def test_gradients_are_off() -> None:
    states: list[bool] = []

    def step(input_ids: Tensor, past: int) -> Tensor:
        states.append(torch.is_grad_enabled())
        return torch.zeros(3)

    generate(step, [1], new_tokens=2)
    assert states == [False, False]


def test_a_generation_that_just_fits_is_accepted_and_one_more_token_is_not(ours: Llama) -> None:
    check_length(ours, [1] * 60, new_tokens=5)
    with pytest.raises(CacheOverflow, match="prompt is too long") as caught:
        check_length(ours, [1] * 60, new_tokens=6)
    assert "60 tokens of prompt and 6 of answer" in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "index"),
    [
        ([], [], None),
        ([1, 2], [1, 2], None),
        ([1, 2], [1, 3], 1),
        ([1], [1, 2], 1),
        ([0, 2], [0], 1),
        ([], [0], 0),
    ],
)
def test_the_first_difference_counts_a_missing_token(
    one: list[int], other: list[int], index: int | None
) -> None:
    assert first_difference(one, other) == index
