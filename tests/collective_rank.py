"""One rank of a model whose collectives are cuts, captured; run by ``tests/test_static_collectives.py``."""

from __future__ import annotations

import copy
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import torch_piecewise as tp

COLLECTIVES = ["_c10d_functional::all_reduce", "_c10d_functional::wait_tensor"]


class Sharded(torch.nn.Module):
    """A row-parallel layer: partial sums are added up over the ranks, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        dist.all_reduce(y)
        z = self.second(y).sin()
        dist.all_reduce(z)
        return z + 1


def captured(model: Any, **fields: Any) -> Any:
    """The model, compiled with its collectives as cuts and static graphs that need no GPU."""
    settings = {
        "backend": "eager",
        "splitting_ops": COLLECTIVES,
        "dynamic_arg_dims": {"x": 0},
        "disable_cache": True,
        "static_graph_class": "torch_piecewise.testing.GraphRecorder",
        "cudagraph_mode": "piecewise",
        "cudagraph_capture_sizes": [2, 4],
    }
    return tp.compile(model, **{**settings, **fields})


def main(rank: int, count: int, meeting: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=timedelta(seconds=60)
    )
    torch.manual_seed(rank)  # weights of its own
    model = Sharded().eval()
    reference = copy.deepcopy(model)
    captured(model)
    handle = tp.program_of(model)
    with torch.no_grad():
        model(torch.randn(3, 4))
        handle.warmup()
        for size in (1, 4, 3):
            torch.manual_seed(size)  # the same input on each rank
            x = torch.randn(size, 4)
            torch.testing.assert_close(model(x), reference(x))
    print("replayed", handle.counters["calls_replayed"], "graphs", handle.counters["static_graphs"])
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
