"""The block stack of a diffusion transformer: one program for every resolution, every step of the sampler.

Run it: ``python examples/diffusion_blocks.py``. Weights are random, so what it paints is noise; what it shows
is that the stack compiles once and serves images of any size.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as torch code has it

import torch_piecewise as tp


@dataclass(frozen=True)
class Shape:
    channels: int = 4
    width: int = 256
    heads: int = 4
    depth: int = 8
    text_width: int = 128


class Attention(nn.Module):
    """Over the image, or from the image to the text."""

    def __init__(self, shape: Shape, context_width: int) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q = nn.Linear(shape.width, shape.width)
        self.kv = nn.Linear(context_width, 2 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Shift, scale and gate of both halves come from the time step (adaLN)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm3 = nn.LayerNorm(width)
        self.attention = Attention(shape, width)
        self.cross = Attention(shape, shape.text_width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, text: Tensor, time: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time).unsqueeze(1).chunk(6, dim=-1)
        turned = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(turned, turned)
        x = x + self.cross(self.norm3(x), text)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Stack(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))

    def forward(self, x: Tensor, text: Tensor, time: Tensor) -> Tensor:
        """``x [batch, patches, width]``, ``text [batch, words, text_width]``, ``time [batch, width]``."""
        for block in self.blocks:
            x = block(x, text, time)
        return x


class Denoiser(nn.Module):
    """Patches, time and text around the stack; only the stack is compiled."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.width = shape.width
        self.enter = nn.Conv2d(shape.channels, shape.width, 2, stride=2)
        self.stack = Stack(shape)
        self.leave = nn.Linear(shape.width, 4 * shape.channels)

    def forward(self, image: Tensor, text: Tensor, time: Tensor) -> Tensor:
        patches = self.enter(image)
        angles = time[:, None] * torch.exp(-torch.arange(self.width // 2) * 8 / self.width)
        wave = torch.cat((angles.sin(), angles.cos()), dim=-1)
        x = self.stack(patches.flatten(2).transpose(1, 2), text, wave)
        x = self.leave(x).transpose(1, 2).unflatten(2, patches.shape[2:])
        return F.pixel_shuffle(x, 2)


def compile_stack(model: Denoiser, **fields: object) -> None:
    """Batch, patches and words change from call to call; ranges would be about the patches."""
    dims = {"x": {1: "patches", 0: "batch"}, "text": {0: "batch", 1: "words"}, "time": {0: "batch"}}
    tp.compile(model.stack, dynamic_arg_dims=dims, **fields)


@torch.no_grad()
def sample(model: Denoiser, noise: Tensor, text: Tensor, steps: int) -> Tensor:
    """Euler steps from noise at time 1 to an image at time 0."""
    image = noise
    for step in range(steps):
        time = torch.full((len(noise),), 1 - step / steps)
        image = image - model(image, text, time * 1000) / steps
    return image


def run(shape: Shape, sizes: tuple[tuple[int, int, int], ...], steps: int, **fields: object) -> float:
    """Sample at each ``(batch, height, width)`` with both; the largest difference from eager."""
    model = Denoiser(shape).eval()
    eager = copy.deepcopy(model)
    compile_stack(model, **fields)
    worst = 0.0
    for words, (batch, height, width) in enumerate(sizes, start=5):
        noise = torch.randn(batch, shape.channels, height, width)
        text = torch.randn(batch, words, shape.text_width)
        difference = sample(model, noise, text, steps) - sample(eager, noise, text, steps)
        worst = max(worst, difference.abs().max().item())
        print(f"{batch} images of {height} x {width} after {steps} steps: differ by {worst:.1e}")
    stats = tp.program_of(model.stack).stats
    print(f"{stats.pieces} pieces, {stats.distinct_pieces} distinct, {stats.traces} trace")
    return worst


if __name__ == "__main__":
    run(Shape(), ((2, 32, 32), (3, 16, 48), (1, 64, 64)), steps=4)
