"""Models whose rows do not depend on each other, compiled with static graphs that need no GPU."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

import torch_piecewise as tp
from torch_piecewise.compiled import CompiledCall


class Calls:
    """How often the body of the cut ran."""

    count = 0


CALLS = Calls()


@tp.splitting_op("tests::mix_heads", mutates_args=("out",))
def mix_heads(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Something row by row between [n, d] tensors, written into ``out``."""
    CALLS.count += 1
    out.copy_(torch.sigmoid(q) * k + v)


class Layer(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.RMSNorm(width)
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        out = torch.empty_like(q)
        mix_heads(q, k, v, out)
        return x + out


class Rows(torch.nn.Module):
    """``depth`` layers over [n, width]: ``depth`` cuts, ``depth + 1`` pieces."""

    def __init__(self, depth: int = 2, width: int = 8) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(width) for _ in range(depth))
        self.norm = torch.nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


SETTINGS: dict[str, Any] = {
    "backend": "eager",
    "splitting_ops": ["tests::mix_heads"],
    "disable_cache": True,
    "static_graph_class": "torch_piecewise.testing.GraphRecorder",
    "cudagraph_mode": "piecewise",
    "cudagraph_capture_sizes": [2, 4, 8],
}


def compiled(model: Any, **fields: Any) -> tuple[Any, Any, CompiledCall]:
    """The model compiled with static graphs, an uncompiled copy, and the handle."""
    reference = copy.deepcopy(model)
    made = tp.compile(model, **{**SETTINGS, **fields})
    return made, reference, tp.program_of(made)


def table(handle: CompiledCall) -> list[tuple[int, int | None, str, int, str]]:
    """Rows of the handle's table as plain tuples."""
    assert handle.static_graphs is not None
    return [
        (row.size, row.padded_to, row.mode.name, row.count, row.why)
        for row in handle.static_graphs.table().rows()
    ]
