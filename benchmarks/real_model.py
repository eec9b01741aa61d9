"""Does a real chat model decode and prefill at least as fast in pieces as any other way?

    python benchmarks/real_model.py [--rounds 7] [--tokens 24] [--prefill 512]

SmolLM2-135M in float32 (the demo's model): greedy decode steps at a prefix of 64 tokens, and one prefill.
The ways run in turn within each round, so that a change of the machine's speed meets them alike; medians,
and ratios to "in pieces" (above 1: slower than in pieces). "torch.compile" compiles transformers' decode
step over a static cache, as its documentation says; its prefill is eager.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from torch_piecewise.demo import baselines, engine
from torch_piecewise.demo.command import CAPACITY
from torch_piecewise.demo.generate import step_of
from torch_piecewise.demo.weights import load_llama, model_folder

Step = Callable[[torch.Tensor, int], torch.Tensor]


def decode(step: Step, tokens: int) -> float:
    """Seconds a token, after a prefill of 64."""
    with torch.inference_mode():
        step(torch.arange(100, 164), 0)
        start = time.perf_counter()
        for position in range(tokens):
            step(torch.tensor([200 + position]), 64 + position)
        return (time.perf_counter() - start) / tokens


def prefill(step: Step, length: int) -> float:
    """Seconds for one prefill."""
    ids = torch.randint(100, 4000, (length,))
    with torch.inference_mode():
        start = time.perf_counter()
        step(ids, 0)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--prefill", type=int, default=512)
    args = parser.parse_args()
    folder = model_folder(say=print)
    pieces, eager = (load_llama(folder, capacity=CAPACITY) for _ in range(2))
    engine.compile_model(pieces)
    reference: Any = baselines.load_transformers(folder)
    capacity = 256 + args.prefill
    ways: dict[str, Step] = {
        "in pieces": step_of(pieces),
        "this model, eager": step_of(eager),
        "transformers, growing cache": baselines.growing_cache(reference),
        "transformers, static cache": baselines.static_cache(reference, capacity=capacity),
        "torch.compile, static cache": baselines.compiled_static_cache(reference, capacity=capacity),
    }
    for step in ways.values():
        decode(step, 2)
        prefill(step, args.prefill)
    rounds = [
        {name: (decode(step, args.tokens), prefill(step, args.prefill)) for name, step in ways.items()}
        for _ in range(args.rounds)
    ]
    print(f"{'way':<30} {'tokens/s':>8} {'ratio':>6} {f'prefill {args.prefill}, s':>15} {'ratio':>6}")
    for name in ways:
        token, whole = (statistics.median(one[name][i] for one in rounds) for i in range(2))
        ratios = [statistics.median(one[name][i] / one["in pieces"][i] for one in rounds) for i in range(2)]
        print(f"{name:<30} {1 / token:>8.1f} {ratios[0]:>6.2f} {whole:>15.2f} {ratios[1]:>6.2f}")


if __name__ == "__main__":
    main()
