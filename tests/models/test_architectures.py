"""Whole architectures work unchanged: the result of the uncompiled model, bit for bit, at every size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

import torch_piecewise as tp
from tests.graphs import BEFORE_2_13, HAS_FAKE_ENCODER_LAYER, Stack
from tests.models.checks import SIZES, works_unchanged
from torch_piecewise.errors import GraphBreakError

pytestmark = pytest.mark.usefixtures("no_grad")


class Attention(nn.Module):
    """Multi-head attention over [b, s, d]; keys and values come from ``memory`` where it is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None, causal: bool = False) -> Tensor:
        source = x if memory is None else memory
        key, value = self.key_value(source).chunk(2, -1)
        query, key, value = (self._split(part) for part in (self.query(x), key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Pre-norm attention (and cross attention where ``memory`` is given) and feed-forward."""

    def __init__(self, width: int, heads: int = 2, *, causal: bool = False, cross: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in ("own", "cross", "feed")})
        self.attention = Attention(width, heads)
        self.cross = Attention(width, heads) if cross else None
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norms["own"](x), causal=self.causal)
        if self.cross is not None:
            x = x + self.cross(self.norms["cross"](x), memory)
        return x + self.feed(self.norms["feed"](x))


class Encoder(nn.Module):
    def __init__(self, depth: int = 2, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self._positions(ids.shape[1])
        for layer in self.layers:
            x = layer(x)
        return x

    def _positions(self, length: int) -> Tensor:
        width = self.embed.embedding_dim
        at = torch.arange(length, device=self.embed.weight.device)[:, None]
        speed = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        return torch.cat([torch.sin(at * speed), torch.cos(at * speed)], -1)


class EncoderDecoder(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.encoder = Encoder(1, width)
        self.decoder = nn.ModuleList(Layer(width, causal=True, cross=True) for _ in range(2))
        self.head = nn.Linear(width, 20)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.encoder(source)
        x = self.encoder.embed(target)
        for layer in self.decoder:
            x = layer(x, memory)
        return self.head(x)


class Experts(nn.Module):
    """Soft mixture: every expert computes every token, the router weighs its best two."""

    def __init__(self, width: int = 8, experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, 2 * width) / width)
        self.down = nn.Parameter(torch.randn(experts, 2 * width, width) / width)

    def forward(self, x: Tensor) -> Tensor:
        best, index = self.router(x).softmax(-1).topk(2)
        weights = torch.zeros(x.shape[0], self.up.shape[0]).scatter(1, index, best)
        hidden = torch.einsum("nd,edh->neh", x, self.up).relu()
        return torch.einsum("neh,ehd,ne->nd", hidden, self.down, weights)


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, kernel_size=4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 5, width))
        self.layers = nn.Sequential(Layer(width), Layer(width))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.layers(x)[:, 0])


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 20, shape)


def test_an_encoder_of_two_dynamic_dims() -> None:
    compiled = works_unchanged(
        Encoder().eval(),
        lambda size: (tokens(*size),),
        [(2, 5), (1, 5), (2, 1), (1, 1), (4, 4), (3, 9)],
        dynamic_arg_dims={"ids": [0, 1]},
    )
    assert tp.program_of(compiled).stats.cuts == 2


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_own_transformer_encoder(norm_first: bool, batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    if batch_first and not HAS_FAKE_ENCODER_LAYER:
        with pytest.raises(GraphBreakError, match="does not support running with fake tensors"):
            works_unchanged(model, lambda n: (torch.randn(n, 4, 8),), dynamic_arg_dims={"src": 0})
        return
    works_unchanged(model, lambda n: (torch.randn(n, 4, 8),), dynamic_arg_dims={"src": 0})


@pytest.mark.skipif(
    not HAS_FAKE_ENCODER_LAYER, reason="this torch has no fake kernel for its fused encoder layer"
)
def test_torchs_own_transformer_encoder_on_its_fast_path_with_padding() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()

    def inputs(size: int) -> dict[str, Tensor]:
        lengths = torch.randint(1, 5, (size,))
        padding = torch.arange(4)[None, :] >= lengths[:, None]
        return {"src": torch.randn(size, 4, 8), "src_key_padding_mask": padding}

    works_unchanged(model, inputs, dynamic_arg_dims={"src": 0, "src_key_padding_mask": {0: None}})


def test_an_encoder_decoder_with_cross_attention() -> None:
    works_unchanged(
        EncoderDecoder().eval(),
        lambda size: (tokens(size[0], size[1]), tokens(size[0], size[2])),
        [(2, 5, 3), (1, 5, 3), (2, 1, 4), (2, 4, 1), (3, 3, 3)],
        dynamic_arg_dims={"source": {0: "b", 1: "s"}, "target": {0: "b", 1: "t"}},
    )


def test_a_mixture_of_experts() -> None:
    works_unchanged(Experts().eval(), lambda n: (torch.randn(n, 8),))


def test_a_convolutional_network_is_one_piece() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    ).eval()  # fmt: skip
    compiled = works_unchanged(
        model,
        lambda n: (torch.randn(n, 3, 8, 8),),
        traces=2 if BEFORE_2_13 else 1,  # torch 2.11 chooses a convolution by the batch: one or several
        dynamic_arg_dims={"input": 0},
    )
    assert (tp.program_of(compiled).stats.pieces, tp.program_of(compiled).stats.cuts) == (1, 0)


def test_a_convolutional_network_of_dynamic_image_size() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 3, padding=1)).eval()
    works_unchanged(
        model,
        lambda size: (torch.randn(size[0], 3, *size[1:]),),
        [(2, 8, 6), (1, 8, 8), (2, 1, 3), (1, 1, 1)],
        traces=2 if BEFORE_2_13 else 1,
        dynamic_arg_dims={"input": [0, 2, 3]},
    )


def test_a_vision_transformer() -> None:
    works_unchanged(VisionTransformer().eval(), lambda n: (torch.randn(n, 3, 8, 8),))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flexible_attention_with_a_score_of_its_own() -> None:
    class Flexible(Attention):
        def forward(self, x: Tensor, memory: Tensor | None = None, causal: bool = False) -> Tensor:
            key, value = self.key_value(x).chunk(2, -1)
            parts = (self._split(part) for part in (self.query(x), key, value))
            mixed = flex_attention(*parts, score_mod=lambda score, _b, _h, q, k: score + 0.1 * (q - k))
            return self.out(mixed.transpose(1, 2).flatten(2))

    compiled = works_unchanged(
        Flexible(8, 2).eval(),
        lambda size: (torch.randn(*size, 8),),
        [(2, 5), (3, 7), (1, 4)],
        traces=2,  # torch asks whether the batch is 1
        tolerance=1e-6,  # traced, it is one operation with another order of sums
        dynamic_arg_dims={"x": [0, 1]},
    )
    assert tp.program_of(compiled).stats.cuts == 1


def test_ranges_and_exact_sizes_give_what_the_model_gives() -> None:
    works_unchanged(
        Stack(3).eval(),
        lambda n: (tokens(n),),
        [*SIZES, 8, 9, 64],
        splitting_ops=["tests::attention"],
        compile_ranges_endpoints=[2, 8],
        compile_sizes=[1, 7],
    )
