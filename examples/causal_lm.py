"""SmolLM2 through transformers' own ``generate()``, eager and in pieces: ``python -m examples.causal_lm``.

Greedy, sampling, a batch of prompts of unlike length, a draft model, prompt look-up: for each way the tokens
of both and how many come in a second.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import torch_piecewise as tp
from torch_piecewise.integrations.transformers import compile_causal_lm

PROMPTS = (
    "Name three rivers in Europe.",
    "Explain what a compiler does, in two sentences.",
    "Why is the sky blue?",
)


@dataclass(frozen=True)
class Answer:
    """Tokens, ``[batch, new]``, and the seconds they took."""

    tokens: Tensor
    seconds: float

    @property
    def speed(self) -> float:
        """Tokens a second, of all sequences together."""
        return self.tokens.numel() / self.seconds


Way = Callable[[Any], Tensor]
"""Takes the model, gives prompts and answers, ``[batch, length]``."""


def padded(prompts: Iterable[Sequence[int]], pad: int = 0) -> dict[str, Tensor]:
    """Prompts of unlike length as one batch, padded on the left, where a decoder wants it."""
    rows = [torch.tensor(list(prompt)) for prompt in prompts]
    length = max(map(len, rows))
    filled = [nn.functional.pad(row, (length - len(row), 0), value=pad) for row in rows]
    masks = [nn.functional.pad(torch.ones_like(row), (length - len(row), 0)) for row in rows]
    return {"input_ids": torch.stack(filled), "attention_mask": torch.stack(masks)}


def draft_of(model: Any, layers: int) -> Any:
    """The first layers of a Llama as a model of its own: quick, and often right about the next token."""
    draft = copy.deepcopy(model)
    draft.model.layers = draft.model.layers[:layers]
    draft.config.num_hidden_layers = layers
    return draft


def ways(prompts: Sequence[Sequence[int]], draft: Any, new_tokens: int) -> dict[str, Way]:
    """Ways to generate, by name; sampling draws the same numbers each time."""
    one, all_of_them = padded(prompts[:1]), padded(prompts)
    fixed = {"max_new_tokens": new_tokens, "pad_token_id": 0}

    def sampled(model: Any) -> Tensor:
        torch.manual_seed(0)
        return model.generate(**one, **fixed, do_sample=True, temperature=0.8, top_p=0.95)

    def greedy(model: Any, inputs: dict[str, Tensor], **how: Any) -> Tensor:
        return model.generate(**inputs, **fixed, do_sample=False, **how)

    return {
        "greedy": lambda model: greedy(model, one),
        "sampling": sampled,
        "padded batch": lambda model: greedy(model, all_of_them),
        "draft model": lambda model: greedy(model, one, assistant_model=draft),
        "prompt look-up": lambda model: greedy(model, one, prompt_lookup_num_tokens=3),
    }


def answers(model: Any, prompts: Sequence[Sequence[int]], draft: Any, new_tokens: int) -> dict[str, Answer]:
    """What the model says to each way, after two tokens that are not timed."""
    before = ways(prompts, draft, new_tokens=2)
    found = {}
    for name, way in ways(prompts, draft, new_tokens).items():
        before[name](model)
        start = time.perf_counter()
        tokens = way(model)
        found[name] = Answer(tokens[:, -new_tokens:], time.perf_counter() - start)
    return found


def compare(
    model: Any, prompts: Sequence[Sequence[int]], *, draft_layers: int, new_tokens: int, **fields: Any
) -> int:
    """Print a line for each way; how many gave other tokens in pieces than eager. Compiles in place."""
    model.generation_config.eos_token_id = None  # every answer of the same length
    draft = draft_of(model, draft_layers)
    with torch.no_grad():
        eager = answers(model, prompts, draft, new_tokens)
        compile_causal_lm(model, max_length=512, compile_sizes=[1], **fields)
        pieces = answers(model, prompts, draft, new_tokens)
    print(f"{'tokens/s':<16} {'eager':>7} {'pieces':>7}")
    differ = 0
    for name, want in eager.items():
        got = pieces[name]
        same = torch.equal(got.tokens, want.tokens)
        differ += not same
        print(f"{name:<16} {want.speed:>7.1f} {got.speed:>7.1f}{'' if same else '  OTHER TOKENS'}")
    print(tp.program_of(model).stats)
    return differ


def main() -> None:
    from torch_piecewise.demo.baselines import load_transformers
    from torch_piecewise.demo.text import Chat
    from torch_piecewise.demo.weights import model_folder

    folder = model_folder(say=print)
    chat = Chat.load(folder)
    compare(load_transformers(folder), [chat.prompt(one) for one in PROMPTS], draft_layers=10, new_tokens=32)


if __name__ == "__main__":
    main()
