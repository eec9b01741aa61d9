"""Models that the bundle tests bake; this file is copied to where only the serving process can import it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import torch_piecewise as tp


@tp.splitting_op("served::attention", mutates_args=("out",))
def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, layer: str) -> None:
    """Softmax attention over [n, d] tensors, written into ``out``."""
    out.copy_(torch.softmax(q @ k.t() / q.shape[-1] ** 0.5, -1) @ v)


class Block(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.name = f"layers.{index}"
        self.norm = nn.RMSNorm(16)
        self.qkv = nn.Linear(16, 48, bias=False)
        self.out = nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        result = torch.empty_like(q)
        attention(q, k, v, result, self.name)
        return x + self.out(result)


class LM(nn.Module):
    """A decoder over token ids [n], head tied to the embedding; positions in a buffer that is not saved."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(Block(index) for index in range(depth))
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("places", torch.linspace(0, 1, 64)[:, None] * torch.ones(16), persistent=False)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.embed(ids) + self.places[: ids.shape[0]]
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.head(x)}


class Gated(nn.Module):
    """Attention over [b, s, d] that torch knows and a gated feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 48)
        self.gate = nn.Linear(16, 32)
        self.out = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.mix(x).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        left, right = self.gate(x + mixed.transpose(1, 2).flatten(2)).chunk(2, -1)
        return self.out(functional.silu(left) * right)


class Plain(nn.Module):
    """Nothing to cut at; changes a buffer, returns a view of its argument and a number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, scale: float = 2.0) -> tuple[Tensor, Tensor, int]:
        self.calls += 1
        return functional.gelu(self.layer(x)) * scale + self.calls, x.t(), x.shape[0]


LM_SETTINGS = {
    "splitting_ops": ["served::attention"],
    "dynamic_arg_dims": {"ids": 0},
    "compile_ranges_endpoints": [8],
    "compile_sizes": [1],
}
GATED_SETTINGS = {"dynamic_arg_dims": {"x": [0, 1]}}
PLAIN_SETTINGS = {"dynamic_arg_dims": {"x": 0}, "splitting_ops": []}


def example(name: str, size: int) -> tuple[Tensor, ...]:
    """Fresh inputs of one of the models."""
    if name == "LM":
        return (torch.randint(0, 50, (size,)),)
    return (torch.randn(size, 5, 16),) if name == "Gated" else (torch.randn(size, 4),)
