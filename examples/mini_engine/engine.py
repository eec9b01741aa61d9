"""The engine: who runs in the next step, with which pages, and what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

import torch

from .model import Batch, PagedLlama


@dataclass
class Sequence:
    """A prompt and what has been made of it."""

    tokens: list[int]
    new_tokens: int
    kept: int = 0  # how many tokens the cache holds
    pages: list[int] = field(default_factory=list)
    made: list[int] = field(default_factory=list)


class Engine:
    """Generates greedily for any number of prompts, as many at once as places and pages allow.

    Each step takes the next token of every running sequence, and fills up with pieces of new prompts.

    Args:
        places: most sequences at once.
        step_tokens: most tokens in one step; a longer prompt takes several.
        stop: tokens that end a sequence.
    """

    def __init__(
        self, model: PagedLlama, *, places: int = 8, step_tokens: int = 256, stop: Collection[int] = ()
    ) -> None:
        self.model, self.places, self.step_tokens, self.stop = model, places, step_tokens, stop
        self.free = list(range(model.pages))
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, prompt: list[int], new_tokens: int) -> Sequence:
        """Queue a prompt; what is returned fills as steps run."""
        if self._pages_for(len(prompt), new_tokens) > self.model.pages:
            raise ValueError(f"{len(prompt)} + {new_tokens} tokens need more pages than there are")
        self.waiting.append(Sequence(list(prompt), new_tokens))
        return self.waiting[-1]

    def run(self) -> int:
        """Step until nothing is left; how many steps it took."""
        steps = 0
        while self.running or self.waiting:
            self.step()
            steps += 1
        return steps

    @torch.no_grad()
    def step(self) -> None:
        """Run the model once."""
        self._admit()
        counts = self._share()
        ids, positions, last, tables = (
            [],
            [],
            [],
            torch.zeros(self.places, self.model.pages, dtype=torch.int64),
        )
        for place, (one, count) in enumerate(zip(self.running, counts, strict=True)):
            ids += one.tokens[one.kept : one.kept + count]
            positions += range(one.kept, one.kept + count)
            one.kept += count
            tables[place, : len(one.pages)] = torch.tensor(one.pages)
            if count:
                last.append(len(ids) - 1)
        idle = [0] * (self.places - len(counts))
        lengths = [one.kept for one in self.running] + idle
        batch = Batch(torch.tensor(counts + idle), torch.tensor(lengths), tables)
        logits = self.model(torch.tensor(ids), torch.tensor(positions), torch.tensor(last), batch)
        best = iter(logits.argmax(dim=-1).tolist())
        for one, count in zip(list(self.running), counts, strict=True):
            if count:
                self._take(one, next(best))

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.places:
            needed = self._pages_for(len(self.waiting[0].tokens), self.waiting[0].new_tokens)
            if needed > len(self.free):
                return  # whoever finishes makes room
            one = self.waiting.popleft()
            one.pages = [self.free.pop() for _ in range(needed)]
            self.running.append(one)

    def _share(self) -> list[int]:
        """How many tokens of each running sequence this step takes: decoding first, then prompts in order."""
        left = self.step_tokens - sum(len(one.tokens) - one.kept == 1 for one in self.running)
        counts = []
        for one in self.running:
            missing = len(one.tokens) - one.kept
            counts.append(1 if missing == 1 else max(min(missing, left), 0))
            left -= 0 if missing == 1 else counts[-1]
        return counts

    def _take(self, one: Sequence, token: int) -> None:
        if one.kept < len(one.tokens):
            return  # the prompt is not through; what follows its middle is known already
        one.made.append(token)
        one.tokens.append(token)
        if token in self.stop or len(one.made) == one.new_tokens:
            self.free += one.pages
            self.running.remove(one)

    def _pages_for(self, prompt: int, new_tokens: int) -> int:
        return -(-(prompt + new_tokens) // self.model.page)
