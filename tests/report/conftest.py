"""A model that ran, and its handle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torch_piecewise as tp
from tests.graphs import Stack


@pytest.fixture(scope="session")
def handle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A stack of four blocks that served sizes 3, 1 and 100, its calls counted and its pieces measured."""
    model = Stack(4).eval()
    tp.compile(
        model,
        backend="eager",
        splitting_ops=["tests::attention"],
        dynamic_arg_dims={"ids": 0},
        compile_ranges_endpoints=[8],
        compile_sizes=[1],
        count_calls=True,
        cache_dir=str(tmp_path_factory.mktemp("store")),
    )
    with torch.no_grad():
        for size in (3, 1, 100, 3):
            model(torch.randint(0, 50, (size,)))
        tp.program_of(model).profile(torch.randint(0, 50, (3,)), rounds=2)
    return tp.program_of(model)
