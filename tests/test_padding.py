"""What a traced graph tells about padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tests.static_models import compiled, table
from torch_piecewise.compiled import CompiledCall

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
        pairs_of_rows,
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
