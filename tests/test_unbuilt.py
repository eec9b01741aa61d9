from __future__ import annotations

from typing import Any

import pytest
import torch

import torch_piecewise as tp
from torch_piecewise.errors import ConfigError


@pytest.mark.parametrize(
    "field",
    [
        {"use_inductor_graph_partition": True},
    ],
    ids=lambda field: next(iter(field.items())),
)
def test_a_setting_without_machinery_says_so_instead_of_being_ignored(field: dict[str, Any]) -> None:
    (name,) = field
    tp.Config(**field)
    with pytest.raises(
        ConfigError, match=f"{name}=.* is a setting whose machinery is not part of this version"
    ):
        tp.compile(torch.nn.ReLU(), dynamic_arg_dims={"input": 0}, **field)
    with pytest.raises(ConfigError, match="not part of this version"):
        tp.PiecewiseCompileBackend(tp.Config(**field))


def test_what_is_built_is_not_refused() -> None:
    tp.compile(
        torch.nn.ReLU(),
        dynamic_arg_dims={"input": 0},
        mode="trace_once",
        on_miss="eager",
        on_guard_failure="error",
        compile_threads=1,
        compile_sizes=[1],
        on_piece_error="eager",
    )
