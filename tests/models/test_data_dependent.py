"""Sizes and numbers that are read from data work unchanged, whole and across cuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.models.checks import SIZES, Inputs, works_unchanged

pytestmark = pytest.mark.usefixtures("no_grad")

CUTS = pytest.mark.parametrize("cut", [[], ["torch.nn.functional.relu"]], ids=["uncut", "cut"])


def selected(x: Tensor) -> tuple[Any, ...]:
    rows = functional.relu(x[x.sum(1) > 0] * 2)
    return rows.sum(0), rows.shape[0], rows + rows.shape[0]


def numbered(x: Tensor) -> Tensor:
    number = (x.argmax() - 2).item()
    return functional.relu(x + number) * number


def parted(x: Tensor) -> list[Tensor]:
    lengths = torch.tensor([1, x.shape[0], 0])
    parts = []
    for length in lengths.tolist():
        torch._check(length >= 0)
        torch._check(length <= x.shape[0])
        parts.append(functional.relu(x[:length]).sum())
    return parts


FUNCTIONS = pytest.mark.parametrize("function", [selected, numbered, parted])


def rows(n: int) -> Inputs:
    return (torch.randn(n, 3),)


@CUTS
@FUNCTIONS
def test_data_dependent_sizes(function: Callable[..., Any], cut: list[str]) -> None:
    works_unchanged(function, rows, splitting_ops=cut)


@pytest.mark.inductor
@FUNCTIONS
def test_data_dependent_sizes_with_inductor(function: Callable[..., Any]) -> None:
    works_unchanged(
        function,
        rows,
        backend="inductor",
        disable_cache=True,
        tolerance=1e-5,
        splitting_ops=["torch.nn.functional.relu"],
    )


def scaled(x: Tensor) -> Tensor:
    return (functional.relu(torch.sin(x)) * x.shape[0]).sum(1)


@CUTS
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
def test_sizes_of_which_nothing_is_assumed(backend: str, cut: list[str]) -> None:
    works_unchanged(
        scaled,
        rows,
        [1, *SIZES],
        backend=backend,
        disable_cache=True,
        tolerance=0 if backend == "eager" else 1e-5,
        splitting_ops=cut,
        dynamic_shapes="unbacked",
    )


def conditional(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,)) + 1


def partly_in_half_precision(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = x @ x.t()
    return y.float() + 1


@pytest.mark.inductor
@pytest.mark.parametrize("function", [conditional, partly_in_half_precision])
def test_what_inductor_compiles_but_does_not_write_down(function: Callable[..., Any]) -> None:
    works_unchanged(function, rows, [3, 1], backend="inductor", tolerance=1e-2)
