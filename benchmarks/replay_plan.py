"""What does a replayed call cost beside its replays?

    PYTHONPATH=src python benchmarks/replay_plan.py [--layers 1 4 16 64] [--calls 200] [--rounds 9]

Needs no GPU: the static graphs do nothing, and the cuts next to nothing, so that what is left is Python: the
checks of a call, copies in, a flat list of replays and cut bodies, copies out. Side by side: a loop written
by hand over as many replays and cut bodies, with the copies that any user of a graph has to make; the runner
alone; and the whole call of the compiled model, which also looks whether each of its weights is still the
same. One thread, rounds of the three in turn, medians.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import torch_piecewise as tp
from torch_piecewise.cudagraphs import (
    CUDAGraphDispatcher,
    DynamicInput,
    Extent,
    StaticGraphRunner,
    cut_step,
)


class Nothing:
    """A static graph without any work in it."""

    def replay(self) -> None:
        """Do nothing."""

    def reset(self) -> None:
        """Do nothing."""


class NothingRecorded:
    """Static graphs that stand for no work; a ``StaticGraphBackend``."""

    checks_addresses = False

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def capture(self, *, collect: bool = False) -> Iterator[Nothing]:
        """The block runs as it is."""
        yield Nothing()

    def weak(self, tensor: Tensor) -> Tensor:
        """The tensor itself: nobody shares its memory."""
        return tensor

    def memory_in_use(self) -> int:
        """None."""
        return 0

    def turn(self) -> Any:
        """One thread at a time."""
        return self._lock


@tp.splitting_op("bench_plan::cut", mutates_args=("out",))
def cut(x: Tensor, out: Tensor) -> None:
    """Almost nothing."""


class Stack(torch.nn.Module):
    """``layers`` cuts, ``layers + 1`` pieces."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.randn(8) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            q = x * weight
            out = torch.empty_like(q)
            cut(q, out)
            x = x + out
        return x


def by_hand(layers: int) -> Callable[[Tensor], Tensor]:
    """What somebody would write who has the graphs and the buffers at hand."""
    buffer, q, out, result = (torch.zeros(4, 8) for _ in range(4))
    replays = [Nothing().replay for _ in range(layers + 1)]
    body = cut.body

    def call(x: Tensor) -> Tensor:
        buffer.copy_(x)
        replays[0]()
        for replay in replays[1:]:
            body(q, out)
            replay()
        return result.clone()

    return call


def whole_call(layers: int) -> Callable[[Tensor], Tensor]:
    """The same through ``tp.compile``."""
    model = tp.compile(
        Stack(layers),
        backend="eager",
        disable_cache=True,
        splitting_ops=["bench_plan::cut"],
        cudagraph_mode="piecewise",
        cudagraph_capture_sizes=[4],
        static_graph_class=f"{__name__}.NothingRecorded",
    )
    model(torch.randn(4, 8))
    handle = tp.program_of(model)
    handle.warmup()
    with handle.counters.expect(calls_replayed=1):
        model(torch.randn(4, 8))
    call: Callable[[Tensor], Tensor] = model
    return call


def runner_alone(layers: int) -> Callable[[Tensor], Tensor]:
    """A runner over the same steps, without a model around it."""
    q, out = torch.zeros(4, 8), torch.zeros(4, 8)
    eager = cut_step(cut.body)

    def line(x: Tensor) -> Tensor:
        for _ in range(layers):
            eager(q, out)
        return x + 1

    runner = StaticGraphRunner(
        lambda size: line,
        CUDAGraphDispatcher(tp.CUDAGraphMode.PIECEWISE, [4]),
        NothingRecorded(),
        {0: DynamicInput()},
        {0: [Extent(0)]},
    )
    runner.warmup(example=(torch.randn(4, 8),))
    return runner


def microseconds(call: Callable[[Tensor], Tensor], calls: int) -> float:
    x = torch.randn(4, 8)
    start = time.perf_counter()
    for _ in range(calls):
        call(x)
    return (time.perf_counter() - start) / calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'pieces':>8} {'by hand us':>12} {'runner us':>12} {'call us':>12}")
    with torch.inference_mode():
        for layers in args.layers:
            calls = by_hand(layers), runner_alone(layers), whole_call(layers)
            rounds = [[microseconds(call, args.calls) for call in calls] for _ in range(args.rounds + 1)]
            medians = [statistics.median(column) for column in zip(*rounds[1:], strict=True)]
            print(f"{layers + 1:>8}", *(f"{median:>12.1f}" for median in medians))


if __name__ == "__main__":
    main()
