"""What a traced graph tells about padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tests.graphs import BEFORE_2_13, HAS_FAKE_ENCODER_LAYER
from tests.static_models import compiled, table
from torch_piecewise.compiled import CompiledCall
from torch_piecewise.demo.llama_config import LlamaConfig
from torch_piecewise.demo.model import Llama

pytestmark = pytest.mark.usefixtures("no_grad")

WEIGHT = torch.randn(6, 6)


def facts_of(function: Any, x: Tensor) -> tuple[Any, CompiledCall]:
    model, _reference, handle = compiled(
        function,
        cudagraph_mode="full",
        dynamic_arg_dims={"x": 0},
        splitting_ops=None,
        cudagraph_num_of_warmups=0,
    )
    model(x)
    return model, handle


def linear(x: Tensor) -> Tensor:
    return F.layer_norm(F.gelu(x @ WEIGHT) + 1, (6,)).softmax(-1)


def heads(x: Tensor) -> Tensor:
    y = x.view(x.shape[0], 2, 3).transpose(0, 1)
    return y.transpose(0, 1).reshape(-1, 3).relu().view(-1, 6)


def positions(x: Tensor) -> Tensor:
    return x * torch.arange(x.shape[0])[:, None] + torch.zeros(x.shape[0], 6)


def causal(x: Tensor) -> Tensor:
    q = x[None, None]
    return F.scaled_dot_product_attention(q, q, q, is_causal=True)[0, 0]


def running_total(x: Tensor) -> Tensor:
    return x.cumsum(0)


@pytest.mark.parametrize("function", [linear, heads, positions, causal, running_total])
def test_what_treats_each_token_by_itself_is_padded_and_right(function: Any) -> None:
    model, handle = facts_of(function, torch.randn(3, 6))
    x = torch.randn(3, 6)
    torch.testing.assert_close(model(x), function(x))
    assert table(handle) == [(3, 4, "FULL", 2, "")]


def mean_taken_off(x: Tensor) -> Tensor:
    return x - x.mean(0)


def last(x: Tensor) -> Tensor:
    return x[-1:]


def total(x: Tensor) -> Tensor:
    return x.sum()


def scaled_by_count(x: Tensor) -> Tensor:
    return x * x.shape[0]


def all_pairs(x: Tensor) -> Tensor:
    return x @ x.t()


def softmax_over_tokens(x: Tensor) -> Tensor:
    return torch.softmax(x, 0)


def backwards(x: Tensor) -> Tensor:
    return x.flip(0)


def ranked(x: Tensor) -> Tensor:
    return x.sort(dim=0).values


def with_an_end(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(1, 6)])


def twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])


def pairs_of_rows(x: Tensor) -> Tensor:
    return x[: x.shape[0] // 2]


def attends(x: Tensor) -> Tensor:
    q = x[None, None]
    return F.scaled_dot_product_attention(q, q, q)[0, 0]


def countdown(x: Tensor) -> Tensor:
    return x * torch.arange(x.shape[0] - 1, -1, -1)[:, None]


def gram(x: Tensor) -> Tensor:
    return x @ (x.t() @ x)


@pytest.mark.parametrize(
    "function",
    [
        mean_taken_off,
        last,
        total,
        scaled_by_count,
        all_pairs,
        softmax_over_tokens,
        backwards,
        ranked,
        with_an_end,
        twice,
        pytest.param(
            pairs_of_rows,
            marks=pytest.mark.skipif(BEFORE_2_13, reason="to torch 2.11 the size of such a slice is data"),
        ),
        attends,
        countdown,
        gram,
    ],
)
def test_what_mixes_tokens_is_replayed_at_captured_sizes_only_and_never_wrong(function: Any) -> None:
    model, handle = facts_of(function, torch.randn(3, 6))
    for size in (3, 4, 4, 3, 2):
        x = torch.randn(size, 6)
        assert torch.equal(model(x), function(x))
    padded = [row for row in table(handle) if row[1] not in (None, row[0])]
    assert padded == []
    assert handle.counters["calls_replayed"] == 3
    (why,) = {row[4] for row in table(handle)} - {""}
    assert why.startswith("padding would change results")
    assert "test_padding.py" in why or "output" in why


def test_the_caller_can_promise_that_padding_is_harmless_or_forbid_it() -> None:
    def middle(x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True) * 0

    for padding, padded_to in (("always", 4), ("auto", None), ("never", None)):
        model, _, handle = compiled(
            middle,
            cudagraph_mode="full",
            dynamic_arg_dims={"x": 0},
            cudagraph_num_of_warmups=0,
            cudagraph_padding=padding,
        )
        x = torch.randn(3, 6)
        torch.testing.assert_close(model(x), x)
        assert [row[1] for row in table(handle)] == [padded_to]


def test_an_input_in_which_tokens_meet_tokens_is_not_padded() -> None:
    def masked(x: Tensor, mask: Tensor) -> Tensor:
        return x + mask[:, :1]

    model, _, handle = compiled(
        masked,
        cudagraph_mode="full",
        dynamic_arg_dims={"x": {0: "n"}, "mask": {0: "n", 1: "n"}},
        cudagraph_num_of_warmups=0,
    )
    for size in (3, 4, 4):
        x, mask = torch.randn(size, 6), torch.randn(size, size)
        assert torch.equal(model(x, mask), masked(x, mask))
    assert [row[1:4] for row in table(handle)] == [(None, "NONE", 1), (4, "FULL", 2)]


def test_a_graph_cache_that_tokens_are_written_to_is_not_padded() -> None:
    def keep(x: Tensor, at: Tensor, cache: Tensor) -> Tensor:
        cache[at] = x
        return x * 2

    model, _, handle = compiled(
        keep,
        cudagraph_mode="full",
        dynamic_arg_dims={"x": {0: "n"}, "at": {0: "n"}},
        cudagraph_num_of_warmups=0,
    )
    cache, expected = torch.zeros(8, 6), torch.zeros(8, 6)
    for size in (3, 4, 4):
        x, at = torch.randn(size, 6), torch.randperm(8)[:size]
        model(x, at, cache)
        expected[at] = x
        assert torch.equal(cache, expected)
    assert [row[1:4] for row in table(handle)] == [(None, "NONE", 1), (4, "FULL", 2)]


def last_row_set(x: Tensor) -> Tensor:
    y = x.clone()
    y[-1] = 7
    return y


def last_row_filled(x: Tensor) -> Tensor:
    y = x.clone()
    y[-1:].fill_(7)
    return y


def rows_of_a_table_written(x: Tensor) -> Tensor:
    table = torch.zeros(10, 6)
    table[: x.shape[0]] = 1
    return x + table.sum()


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda x: x.roll(1, 0), "roll"),
        (lambda x: torch.fft.fft(x, dim=0).real, "fft_fft"),
        (lambda x: F.group_norm(x.t()[None], 2)[0].t(), "group_norm"),
        (lambda x: F.instance_norm(x.t()[None])[0].t(), "instance_norm"),
        (lambda x: x.reshape(6, -1).t(), "reshape"),
        (lambda x: x.t().reshape(-1, 6), "reshape"),
        (lambda x: x.reshape(-1).view(6, -1), "view"),
        (last_row_set, "setitem"),
        (last_row_filled, "getitem"),
        (lambda x: x.slice_scatter(torch.ones(1, 6), start=-1), "slice_scatter"),
        (lambda x: x.select_scatter(torch.ones(6), 0, -1), "select_scatter"),
        (lambda x: x.index_fill(0, torch.tensor([-1]), 5.0), "index_fill"),
        (lambda x: x.index_put((torch.tensor([-1]),), torch.ones(6)), "index_put"),
        (lambda x: x + torch.full((6,), x.shape[0]), "full"),
        (lambda x: x + torch.tensor(x.shape[0]), "tensor"),
        (lambda x: x.repeat(2, 1).view(2, -1, 6)[0], "repeat"),
        (lambda x: torch.arange(6.0)[:, None].expand(6, x.shape[0]).reshape(-1, 6) + x, "reshape"),
        (lambda x: torch.logcumsumexp(x, 0), "logcumsumexp"),
        (lambda x: F.conv1d(x.t()[None], torch.ones(6, 6, 3), padding=1)[0].t(), "conv1d"),
        (lambda x: torch.zeros_like(x).scatter(0, torch.zeros(1, 6, dtype=torch.long), 1.0) + x, "scatter"),
        (lambda x: x.sub(1, alpha=x.shape[0]), "sub"),
        (rows_of_a_table_written, "setitem"),
    ],
)
def test_what_is_not_known_to_treat_tokens_one_by_one_is_never_padded(function: Any, op: str) -> None:
    model, handle = facts_of(function, torch.randn(3, 6))
    for size in (3, 4, 4, 3, 2):
        x = torch.randn(size, 6)
        torch.testing.assert_close(model(x), function(x))
    assert [row for row in table(handle) if row[1] not in (None, row[0])] == []
    (why,) = {row[4] for row in table(handle)} - {""}
    assert why.startswith(f"padding would change results: {op} ")
    assert ".py:" in why


class Decoder(torch.nn.Module):
    """A Llama-like block over [n] tokens and their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 8)
        self.norm = torch.nn.RMSNorm(8)
        self.qkv, self.output = torch.nn.Linear(8, 24, bias=False), torch.nn.Linear(8, 8, bias=False)
        self.gate_up, self.down = torch.nn.Linear(8, 32), torch.nn.Linear(16, 8)
        self.register_buffer("cos", torch.randn(64, 2))
        self.register_buffer("sin", torch.randn(64, 2))

    def rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x.view(-1, 2, 4)
        first, second = x[..., :2], x[..., 2:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        y = self.embedding(x)
        q, k, v = self.qkv(self.norm(y)).split([8, 8, 8], -1)
        cos, sin = self.cos[positions].unsqueeze(-2), self.sin.index_select(0, positions)[:, None]
        heads = (self.rotated(q, cos, sin), self.rotated(k, cos, sin), v.reshape(-1, 2, 4))
        attended = F.scaled_dot_product_attention(*(h.transpose(0, 1)[None] for h in heads), is_causal=True)
        y = y + self.output(attended[0].transpose(0, 1).reshape(-1, 8))
        wide = y.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        gate, up = self.gate_up(wide.type_as(y)).chunk(2, dim=-1)
        out = torch.empty_like(y)
        out.copy_(self.down(F.silu(gate) * up))
        return (y + out) @ self.embedding.weight.t()


class Encoder(torch.nn.Module):
    """An encoder block over [n, 6, 8] sequences with a mask of what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = torch.nn.LayerNorm(8), torch.nn.Linear(8, 24)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Dropout(0.1), torch.nn.Linear(16, 8)
        )

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        mask = positions > 1
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + attended.transpose(1, 2).reshape(x.shape[0], -1, 8)
        return (x + self.mlp(x)).masked_fill(~mask[..., None], 0.0).mean(1)


class TorchEncoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.layer(x) + positions[..., None]


@pytest.mark.parametrize(
    "block",
    [
        Decoder,
        Encoder,
        pytest.param(
            TorchEncoder,
            marks=pytest.mark.skipif(
                not HAS_FAKE_ENCODER_LAYER, reason="this torch has no fake kernel for its fused encoder layer"
            ),
        ),
    ],
)
def test_the_blocks_of_transformers_are_padded_and_right(block: Any) -> None:
    model, reference, handle = compiled(
        block().eval(),
        cudagraph_mode="full",
        splitting_ops=[],
        dynamic_arg_dims={"x": {0: "n"}, "positions": {0: "n"}},
        cudagraph_num_of_warmups=0,
    )
    for size in (3, 3, 5):
        if block is Decoder:
            call = torch.randint(0, 20, (size,)), torch.arange(size)
        else:
            call = torch.randn(size, 6, 8), torch.arange(6) + torch.ones(size, 1, dtype=torch.long)
        torch.testing.assert_close(model(*call), reference(*call))
    assert table(handle) == [(3, 4, "FULL", 2, ""), (5, 8, "FULL", 1, "")]


class DemoLayers(torch.nn.Module):
    """The demo's model without its last line, which picks one token."""

    def __init__(self) -> None:
        super().__init__()
        llama = Llama(LlamaConfig(20, 16, 24, 2, 4, 2, 4, 1e-5, 10000.0), capacity=32)
        for weight in llama.parameters():
            weight.data.normal_(std=0.1)
        self.llama = llama

    def forward(self, x: Tensor, positions: Tensor, past: Tensor) -> Tensor:
        llama = self.llama
        y = F.embedding(x, llama.embedding)
        angles = torch.outer(positions.to(llama.frequencies.dtype), llama.frequencies).unsqueeze(1)
        for layer in llama.layers:
            y = layer(y, angles.cos(), angles.sin(), past)
        return llama.norm(y)


def test_the_pieces_of_the_demos_layers_are_padded_and_right() -> None:
    model, reference, handle = compiled(
        DemoLayers(),
        splitting_ops=["torch_piecewise_demo::attention"],
        dynamic_arg_dims={"x": {0: "n"}, "positions": {0: "n"}},
        cudagraph_num_of_warmups=0,
    )
    for size in (3, 3):
        call = torch.randint(0, 20, (size,)), torch.arange(size), torch.zeros(1, dtype=torch.long)
        torch.testing.assert_close(model(*call), reference(*call))
    assert handle.static_graphs is not None
    assert "padding would" not in str(handle.static_graphs.table())
    assert {row[1] for row in table(handle)} == {4}
