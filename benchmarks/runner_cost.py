"""What does the runner cost on top of the pieces it calls?

    python benchmarks/runner_cost.py [--layers 32] [--calls 300] [--rounds 9]

The same piece callables and attention bodies, called by a straight line written by hand for this stack, and
through the compiled model (input checks, parameter look-up, size look-up, straight line, result). Tiny
tensors, one thread, rounds of the two in turn; the figure is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import toy

import torch_piecewise as tp


def by_hand(model: toy.Toy, callables: dict[str, Callable[..., Any]], ids: torch.Tensor) -> Callable[[], Any]:
    """The same calls with every argument bound beforehand."""
    parameters: dict[str, torch.Tensor] = dict(model.named_parameters())
    program = tp.program_of(model).entries[0].program
    line = program.stitched.replaced(lambda op: toy.attention.body if op is toy.attention.op else None)
    convention = tp.program_of(model).entries[0].convention
    arguments: list[Any] = []
    for source in convention.sources:
        path = ".".join(re.findall(r"_(?:modules|parameters)\['(\w+)'\]", source))
        arguments.append(parameters.get(path, source))
    fixed = [ids if a == "L['ids']" else ids.size(0) if isinstance(a, str) else a for a in arguments]
    run = line.bind(callables)
    return lambda: run(*fixed)[0]


def timed(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = toy.Toy(args.layers).eval()
    ids = toy.example(4)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        tp.compile(model, cache_dir=folder, **toy.SETTINGS)
        expected = model(ids)
        program = tp.program_of(model).entries[0].program
        hand = by_hand(model, program.callables(4), ids)
        assert torch.equal(hand(), expected)
        rounds = [
            (timed(hand, args.calls), timed(lambda: model(ids), args.calls)) for _ in range(args.rounds + 1)
        ][1:]
    plain, through = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(
        f"{args.layers + 1} pieces: by hand {plain:.0f} us, through the program {through:.0f} us, "
        f"ratio {through / plain:.3f}"
    )


if __name__ == "__main__":
    main()
