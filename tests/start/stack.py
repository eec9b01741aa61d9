"""The model of the start-up tests; copied into a folder of its own, where tests edit it."""

from __future__ import annotations

import torch
from torch import Tensor

import torch_piecewise as tp


@tp.splitting_op("start::attend", mutates_args=("out",))
def attend(x: Tensor, out: Tensor) -> None:
    """Mix the rows of [n, d]."""
    out.copy_(torch.softmax(x @ x.t(), -1) @ x)


class Layer(torch.nn.Module):
    """One block around the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        attend(x, out)
        return torch.tanh(self.inner(out)) + x


class Stack(torch.nn.Module):
    """Three blocks."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.layers = torch.nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        for layer in self.layers:
            x = layer(x)
        return x.relu()
