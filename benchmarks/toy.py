"""The stack that the benchmarks compile: Llama-like blocks, attention a Python custom op and the cut."""

from __future__ import annotations

import torch
from torch import Tensor

import torch_piecewise as tp


@tp.splitting_op("bench::attention", mutates_args=("out",))
def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, layer: str) -> None:
    """Softmax attention over [n, d] tensors, written into ``out``."""
    out.copy_(torch.softmax(q @ k.t(), -1) @ v)


class Block(torch.nn.Module):
    def __init__(self, width: int, index: int) -> None:
        super().__init__()
        self.name = f"layers.{index}"
        self.norm1 = torch.nn.RMSNorm(width)
        self.norm2 = torch.nn.RMSNorm(width)
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.out = torch.nn.Linear(width, width, bias=False)
        self.up = torch.nn.Linear(width, 2 * width, bias=False)
        self.down = torch.nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        result = torch.empty_like(q)
        attention(q, k, v, result, self.name)
        x = x + self.out(result)
        return x + self.down(torch.nn.functional.silu(self.up(self.norm2(x))))


class Toy(torch.nn.Module):
    """``depth`` blocks: ``depth + 1`` pieces, three distinct."""

    def __init__(self, depth: int, width: int = 32) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(100, width)
        self.layers = torch.nn.ModuleList(Block(width, index) for index in range(depth))
        self.norm = torch.nn.RMSNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def example(size: int) -> Tensor:
    """Random token ids [size]."""
    return torch.randint(0, 100, (size,))


SETTINGS = {"dynamic_arg_dims": {"ids": 0}, "splitting_ops": ["bench::attention"]}
