"""Small graphs and models that several test files use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

import torch_piecewise as tp

BEFORE_2_13 = torch.torch_version.TorchVersion(torch.__version__) < "2.13"
"""Whether this torch knows less than 2.13 does; what that is was checked with 2.11."""

HAS_FAKE_ENCODER_LAYER = torch._C._dispatch_has_kernel_for_dispatch_key(
    "aten::_transformer_encoder_layer_fwd", "Meta"
)
"""Whether the fused layer of torch's own encoder can be traced (2.13; not 2.11)."""


@tp.splitting_op("tests::attention", mutates_args=("out",))
def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, layer: str) -> None:
    """Softmax attention over [n, d] tensors, written into ``out``."""
    out.copy_(torch.softmax(q @ k.t() / q.shape[-1] ** 0.5, -1) @ v)


class Block(torch.nn.Module):
    """One decoder-like layer around the ``tests::attention`` cut."""

    def __init__(self, width: int, index: int) -> None:
        super().__init__()
        self.name = f"layers.{index}"
        self.norm = torch.nn.RMSNorm(width)
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.out = torch.nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        result = torch.empty_like(q)
        attention(q, k, v, result, self.name)
        return x + self.out(result)


class Stack(torch.nn.Module):
    """``depth`` blocks between an embedding and a norm: ``depth + 1`` pieces, three distinct."""

    def __init__(self, depth: int, width: int = 16) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, width)
        self.layers = torch.nn.ModuleList(Block(width, index) for index in range(depth))
        self.norm = torch.nn.RMSNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def traced(function: Callable[..., Any], *inputs: Any) -> GraphModule:
    """The graph that Dynamo makes of ``function``."""
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, _inputs: list[Any]) -> GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    torch.compile(function, backend=keep, fullgraph=True)(*inputs)
    assert len(graphs) == 1
    return graphs[0]
