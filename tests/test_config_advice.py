"""Settings that do nothing together: accepted, for one of them may still change, and told at compile."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp

NOTHING_CAPTURED = (
    "set cudagraph_mode='piecewise' or another that captures, or cudagraph_mode='none' if that is meant"
)


def doubled(x: Tensor) -> Tensor:
    return x * 2


def told(caplog: pytest.LogCaptureFixture, **fields: Any) -> list[str]:
    with caplog.at_level(logging.WARNING, "torch_piecewise"):
        tp.compile(doubled, **fields)
    return [one.getMessage() for one in caplog.records if one.name == "torch_piecewise"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"cudagraph_capture_sizes": [1, 2]},
            f"nothing is captured, so cudagraph_capture_sizes has no effect: {NOTHING_CAPTURED}",
        ),
        (
            {"max_cudagraph_capture_size": 8, "cudagraph_capture_sizes": [1]},
            (
                "nothing is captured, so cudagraph_capture_sizes and max_cudagraph_capture_size have no "
                f"effect: {NOTHING_CAPTURED}"
            ),
        ),
        (
            {"compile_sizes": [1, "cudagraph_capture_sizes"]},
            (
                "'cudagraph_capture_sizes' among compile_sizes stands for no size: give "
                "cudagraph_capture_sizes, or a cudagraph_mode"
            ),
        ),
        (
            {"mode": "trace_once", "splitting_ops": ["aten::mm"]},
            "nothing is cut with mode='trace_once', so splitting_ops has no effect: set mode='piecewise'",
        ),
        (
            {"backend": "eager", "inductor_compile_config": {"max_autotune": True}},
            "backend='eager' compiles nothing, so inductor_compile_config has no effect",
        ),
    ],
)
def test_settings_without_effect_are_told_with_what_gives_them_one(
    caplog: pytest.LogCaptureFixture, fields: dict[str, Any], sentence: str
) -> None:
    assert told(caplog, **fields) == [sentence]


@pytest.mark.parametrize(
    "fields",
    [
        {"cudagraph_capture_sizes": [1, 2], "cudagraph_mode": "none"},
        {"cudagraph_capture_sizes": [1, 2], "cudagraph_mode": "piecewise"},
        {"cudagraph_capture_sizes": [1, 2], "compile_sizes": ["cudagraph_capture_sizes"]},
        {"mode": "trace_once", "splitting_ops": []},
        {},
    ],
)
def test_settings_that_are_meant_are_not_told(
    caplog: pytest.LogCaptureFixture, fields: dict[str, Any]
) -> None:
    assert told(caplog, **fields) == []


def test_a_mode_of_the_environment_counts_and_other_settings_of_it_are_not_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_PIECEWISE_MAX_CUDAGRAPH_CAPTURE_SIZE", "8")
    assert told(caplog) == []
    monkeypatch.setenv("TORCH_PIECEWISE_CUDAGRAPH_MODE", "none")
    assert told(caplog, cudagraph_capture_sizes=[1, 2]) == []


def test_a_config_may_be_completed_later() -> None:
    config = tp.Config(cudagraph_capture_sizes=[1, 2]).replace(cudagraph_mode="full")
    assert config.resolved_capture_sizes() == (1, 2)


def test_options_of_torch_compile_are_looked_at_too(caplog: pytest.LogCaptureFixture) -> None:
    options = {"backend": "eager", "disable_cache": True, "cudagraph_capture_sizes": [1]}
    with caplog.at_level(logging.WARNING, "torch_piecewise"):
        torch.compile(doubled, backend="piecewise", options=options)(torch.randn(3))
    assert "nothing is captured, so cudagraph_capture_sizes has no effect" in caplog.text
