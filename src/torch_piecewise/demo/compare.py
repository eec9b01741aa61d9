"""Whether the demo's model gives the same greedy tokens as transformers.

::

    python -m torch_piecewise.demo.compare --prompts 20 --tokens 64

Both run in float32; they round differently, so a difference means nothing only if the two best logits
were closer than rounding. The gap is printed with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch

from torch_piecewise.demo import baselines, engine
from torch_piecewise.demo.command import CAPACITY
from torch_piecewise.demo.generate import Step, first_difference, generate, step_of
from torch_piecewise.demo.text import Chat
from torch_piecewise.demo.weights import load_llama, model_folder


@dataclass(frozen=True)
class Comparison:
    """One prompt continued twice.

    Attributes:
        length: tokens of the prompt.
        made: tokens that transformers made.
        differs_at: index of the first different token; None if there is none.
        gap: how far apart the two best logits were there.
    """

    length: int
    made: int
    differs_at: int | None
    gap: float | None


def prompts(chat: Chat, count: int, *, shortest: int = 1, longest: int = 600) -> Iterator[list[int]]:
    """Different prompts of real prose, their lengths in tokens evenly spread, both ends included."""
    # The standard library's own help texts: prose that is everywhere and needs no file of ours.
    texts = [chat.tokenizer.encode(text).ids for _, text in sorted(topics.items())]
    long_enough = [ids for ids in texts if len(ids) >= longest]
    for index in range(count):
        length = shortest + (longest - shortest) * index // max(count - 1, 1)
        yield list(long_enough[index % len(long_enough)][:length])


def compare(ours: Step, theirs: Step, prompt: Sequence[int], new_tokens: int) -> Comparison:
    """Continue ``prompt`` with both and find the first difference."""
    expected = generate(theirs, prompt, new_tokens=new_tokens).tokens
    got = generate(ours, prompt, new_tokens=new_tokens).tokens
    index = first_difference(expected, got)
    gap = None
    if index is not None:
        with torch.no_grad():
            best = theirs(torch.tensor([*prompt, *expected[:index]]), 0).topk(2).values
        gap = float(best[0] - best[1])
    return Comparison(len(prompt), len(expected), index, gap)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if every prompt gave the same tokens."""
    parser = argparse.ArgumentParser(prog="python -m torch_piecewise.demo.compare", description=__doc__)
    parser.add_argument("--prompts", type=int, default=20, help="how many")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens for each")
    parser.add_argument("--longest", type=int, default=600, help="tokens of the longest prompt")
    parser.add_argument("--compiled", action="store_true", help="compile the model in pieces")
    parser.add_argument("--folder", type=Path, help="a converted model; default: the packaged one")
    options = parser.parse_args(arguments)

    folder = options.folder or model_folder()
    model = load_llama(folder, capacity=CAPACITY)
    if options.compiled:
        engine.compile_model(model)
    theirs = baselines.growing_cache(baselines.load_transformers(folder))
    differing = 0
    for prompt in prompts(Chat.load(folder), options.prompts, longest=options.longest):
        result = compare(step_of(model), theirs, prompt, options.tokens)
        differing += result.differs_at is not None
        print(_line(result), flush=True)
    print(f"{options.prompts - differing} of {options.prompts} prompts gave the same tokens")
    return 1 if differing else 0


def _line(result: Comparison) -> str:
    start = f"prompt of {result.length} tokens, {result.made} new: "
    if result.differs_at is None:
        return start + "the same"
    where = f"from new token {result.differs_at + 1}, whose two best logits are {result.gap:.1e} apart"
    return f"{start}DIFFERENT {where}"


if __name__ == "__main__":
    sys.exit(main())
