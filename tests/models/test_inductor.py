"""What Inductor makes of the pieces: within rounding of the uncompiled model, side effects included."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torch_piecewise as tp
from tests.graphs import Stack
from tests.models.checks import Inputs, assert_same, works_unchanged

pytestmark = pytest.mark.inductor

TOLERANCE = 1e-5
"""Inductor fuses and reorders float32 arithmetic; values here are of order 1."""

FIELDS: dict[str, Any] = {"backend": "inductor", "disable_cache": True, "tolerance": TOLERANCE}


def test_a_cut_model_in_ranges_and_at_an_exact_size(no_grad: None) -> None:
    compiled = works_unchanged(
        Stack(3).eval(),
        lambda n: (torch.randint(0, 50, (n,)),),
        [5, 1, 2, 8, 9, 40],
        **FIELDS,
        splitting_ops=["tests::attention"],
        compile_ranges_endpoints=[8],
        compile_sizes=[1],
    )
    assert tp.program_of(compiled).stats.distinct_pieces == 3


class Gated(nn.Module):
    """Attention over [b, s, d] that torch knows (a cut) and a gated feed-forward."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.mix = nn.Linear(width, 3 * width)
        self.gate = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.mix(x).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + mixed.transpose(1, 2).flatten(2)
        left, right = self.gate(x).chunk(2, -1)
        return self.out(functional.silu(left) * right)


def test_two_dynamic_symbols(no_grad: None) -> None:
    works_unchanged(
        Gated().eval(),
        lambda size: (torch.randn(*size, 16),),
        [(2, 5), (1, 5), (2, 1), (1, 1), (4, 4), (3, 9)],
        **FIELDS,
        dynamic_arg_dims={"x": [0, 1]},
    )


class Caching(nn.Module):
    """Writes its rows into a cache given by the caller and counts calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, cache: Tensor, positions: Tensor) -> dict[str, Any]:
        self.calls += 1
        y = self.layer(x)
        cache.index_copy_(0, positions, y)
        z = functional.relu(cache.sum(0) / self.calls)
        return {"z": z, "y": y, "again": y, "view": y[:, 1:], "x": x, "turned": x.t(), "rows": x.shape[0]}


@pytest.mark.parametrize("cut", [[], ["torch.nn.functional.relu"]], ids=["uncut", "cut"])
def test_changes_in_place_and_results_that_are_views(no_grad: None, cut: list[str]) -> None:
    def inputs(n: int) -> Inputs:
        return torch.randn(n, 4), torch.zeros(12, 4), torch.randperm(12)[:n]

    compiled = works_unchanged(
        Caching(),
        inputs,
        [3, 1, 7],
        **FIELDS,
        splitting_ops=cut,
        dynamic_arg_dims={"x": {0: "n"}, "positions": {0: "n"}},
    )
    x = torch.randn(3, 4)
    result = compiled(x, torch.zeros(12, 4), torch.arange(3))
    assert result["x"] is x
    assert result["again"] is result["y"]
    result["y"].fill_(5)
    assert (result["view"] == 5).all()
    x.fill_(6)
    assert (result["turned"] == 6).all()


def test_arguments_that_come_to_share_memory(no_grad: None) -> None:
    def shifted(x: Tensor, y: Tensor) -> Tensor:
        x.mul_(3)
        return x + y

    def inputs(way: str) -> Inputs:
        base = torch.randn(5, 3)
        x = base[:4]
        return x, {"apart": base[1:].clone(), "same": x, "overlapping": base[1:]}[way]

    works_unchanged(
        shifted,
        inputs,
        ["apart", "same", "overlapping", "apart"],
        traces=3,
        **FIELDS,
        dynamic_arg_dims={"x": 0, "y": 0},
    )


def test_a_training_step() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.block = Gated()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(functional.gelu(self.first(x)))

    model = Net()
    compiled = tp.compile(
        copy.deepcopy(model), backend="inductor", disable_cache=True, dynamic_arg_dims={"x": 0}
    )
    for size in (3, 1, 5):
        x = torch.randn(size, 4, 16)
        for one in (model, compiled):
            one.zero_grad()
            one(x).pow(2).mean().backward()
        got, want = ([p.grad for p in one.parameters()] for one in (compiled, model))
        assert_same(got, want, f"gradients at {size}", TOLERANCE)
    assert tp.program_of(compiled).stats.traces == 1
