"""A vision transformer in plain PyTorch, compiled for any batch and for batches of one.

Run it: ``python examples/vision.py``.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as torch code has it

import torch_piecewise as tp


@dataclass(frozen=True)
class Shape:
    """``tiny`` is the size of ViT-Tiny."""

    image: int = 224
    patch: int = 16
    width: int = 192
    heads: int = 3
    depth: int = 12
    classes: int = 1000


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # cut here: torch knows this one
        return self.proj(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale1 = nn.Parameter(torch.full((width,), 0.1))
        self.scale2 = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attn(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, patches = shape.width, (shape.image // shape.patch) ** 2
        self.patch_embed = nn.Conv2d(3, width, shape.patch, stride=shape.patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, patches + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, shape.heads) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, shape.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


@torch.no_grad()
def run(shape: Shape, batches: tuple[int, ...], **fields: object) -> float:
    """Compile, compare at each batch size, print the speed; the largest difference from eager."""
    model = VisionTransformer(shape).eval()
    eager = copy.deepcopy(model)
    tp.compile(model, dynamic_arg_dims={"images": {0: "batch"}}, **fields)
    worst = 0.0
    for batch in batches:
        images = torch.randn(batch, 3, shape.image, shape.image)
        difference = (model(images) - eager(images)).abs().max().item()  # the first call compiles
        worst = max(worst, difference)
        print(f"batch {batch}: {speed(model, images):.1f} images/s, eager {speed(eager, images):.1f}")
    stats = tp.program_of(model).stats
    print(f"{stats.pieces} pieces, {stats.distinct_pieces} distinct, {stats.traces} trace")
    print(f"differ by {worst:.1e}")
    return worst


def speed(model: nn.Module, images: Tensor, calls: int = 3) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        model(images)
    return calls * len(images) / (time.perf_counter() - start)


if __name__ == "__main__":
    run(Shape(), (8, 1, 3), compile_sizes=[1])
