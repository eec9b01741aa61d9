"""Greedy generation, one token at a time, and how long each step took."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_piecewise.demo.base import CacheOverflow, DemoError
from torch_piecewise.demo.model import Llama

Step = Callable[[Tensor, int], Tensor]
"""``(input_ids [n], past) -> logits [vocab]``: appends tokens to a sequence that has ``past`` of them; a
step with ``past`` 0 starts a new sequence."""


@dataclass(frozen=True)
class Generation:
    """What was generated.

    Attributes:
        tokens: the new tokens; a stop token, if one came, is the last.
        seconds: one figure for each token; the first is the prefill.
    """

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def prefill_seconds(self) -> float:
        """Seconds from the prompt to the first token."""
        return self.seconds[0]

    @property
    def tokens_per_second(self) -> float | None:
        """Decode speed by the median step, which neither a first compile nor a busy machine moves.

        None if nothing was decoded.
        """
        decode = self.seconds[1:]
        return 1.0 / statistics.median(decode) if decode else None


def step_of(model: Llama, *, device: str | torch.device = "cpu") -> Step:
    """One step of the demo's model, eager or compiled."""

    def step(input_ids: Tensor, past: int) -> Tensor:
        positions = torch.arange(past, past + input_ids.shape[0], device=device)
        logits: Tensor = model(input_ids.to(device), positions, torch.tensor([past]))
        return logits

    return step


def check_length(model: Llama, prompt: Sequence[int], new_tokens: int) -> None:
    """Find out before the first step whether a generation fits.

    Raises:
        CacheOverflow: it does not.
    """
    # The last token is never fed back, so it needs no place.
    needed = len(prompt) + new_tokens - 1
    if needed > model.capacity:
        raise CacheOverflow(
            "The prompt is too long",
            expected=f"prompt and answer of at most {model.capacity + 1} tokens",
            got=f"{len(prompt)} tokens of prompt and {new_tokens} of answer",
            hint="shorten the prompt or ask for fewer new tokens",
        )


def generate(
    step: Step,
    prompt: Sequence[int],
    *,
    new_tokens: int,
    stop: Collection[int] = (),
    on_token: Callable[[int], None] = lambda token: None,
) -> Generation:
    """Greedily continue ``prompt``.

    Args:
        step: the model; its state is that of one sequence.
        prompt: at least one token.
        new_tokens: the most tokens to make, at least one.
        stop: tokens after which to stop early.
        on_token: called with each token as soon as it is known; its time is not counted.

    Raises:
        DemoError: nothing to start from, or nothing to make.
    """
    if not prompt or new_tokens < 1:
        raise DemoError(
            "There is nothing to generate",
            expected="a prompt of at least one token and at least one new token",
            got=f"{len(prompt)} and {new_tokens}",
        )
    tokens: list[int] = []
    seconds: list[float] = []
    feed, past = torch.tensor(prompt), 0
    with torch.no_grad():
        while len(tokens) < new_tokens and not (tokens and tokens[-1] in stop):
            start = time.perf_counter()
            token = int(step(feed, past).argmax())
            seconds.append(time.perf_counter() - start)
            tokens.append(token)
            on_token(token)
            past += feed.shape[0]
            feed = torch.tensor([token])
    return Generation(tuple(tokens), tuple(seconds))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first index at which two answers differ, an end included; None if they are the same."""
    pairs = itertools.zip_longest(one, other)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), None)
