"""What "works unchanged" means: the same results, the same side effects, bit for bit, at every size."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

import torch_piecewise as tp

SIZES = (3, 1, 2, 7)
"""Sizes of the dynamic dim that most tests call a model at; the first one is the one that is traced."""

Inputs = tuple[Any, ...] | dict[str, Any]
"""Arguments of one call: a tuple by position, a dict by name."""


def works_unchanged(
    model: Any,
    inputs_of: Callable[[Any], Inputs],
    sizes: Sequence[Any] = SIZES,
    *,
    traces: int = 1,
    tolerance: float = 0.0,
    **fields: Any,
) -> Any:
    """Call ``model`` and a compiled copy of it with equal fresh inputs at each size, and compare everything.

    Compared are the results (types, structure, values), the inputs after the call and the module's state.

    Args:
        inputs_of: makes the arguments of a call for one of ``sizes``; called once for each of the two models,
            under one seed, so that tensors that share memory do so for both.
        traces: how many traces the calls have to take.
        tolerance: largest difference of values, absolute and relative; 0 asks for equal bits.
        fields: settings; the eager compiler where they name no other.

    Returns:
        The compiled copy.
    """
    compiled = tp.compile(copy.deepcopy(model), **{"backend": "eager", **fields})
    for size in sizes:
        want, want_inputs = _call(model, inputs_of, size)
        got, got_inputs = _call(compiled, inputs_of, size)
        assert_same(got, want, f"result at {size}", tolerance)
        assert_same(got_inputs, want_inputs, f"inputs after the call at {size}", tolerance)
        if isinstance(model, Module):
            assert_same(dict(_state(compiled)), dict(_state(model)), f"state after {size}", tolerance)
    made = tp.program_of(compiled).stats.traces
    assert made == traces, f"{made} traces, expected {traces}"
    return compiled


def _call(model: Any, inputs_of: Callable[[Any], Inputs], size: Any) -> tuple[Any, Inputs]:
    torch.manual_seed(hash(size) % 1000)
    inputs = inputs_of(size)
    torch.manual_seed(1)
    result = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return result, inputs


def _state(model: Module) -> list[tuple[str, Tensor]]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor) for name, tensor in named if not torch.nn.parameter.is_lazy(tensor)]


def assert_same(got: Any, want: Any, where: str = "result", tolerance: float = 0.0) -> None:
    """Both are of one type and structure and hold equal values."""
    assert type(got) is type(want), f"{where}: {type(got).__name__}, expected {type(want).__name__}"
    if isinstance(want, Tensor):
        _assert_same_tensor(got, want, where, tolerance)
    elif isinstance(want, np.ndarray):
        assert np.array_equal(got, want), where
    elif isinstance(want, Mapping):
        assert list(got) == list(want), f"{where}: keys {list(got)}, expected {list(want)}"
        for key in want:
            assert_same(got[key], want[key], f"{where}[{key!r}]", tolerance)
    elif dataclasses.is_dataclass(want):
        for field in dataclasses.fields(want):
            assert_same(
                getattr(got, field.name), getattr(want, field.name), f"{where}.{field.name}", tolerance
            )
    elif isinstance(want, Sequence) and not isinstance(want, str):
        assert len(got) == len(want), f"{where}: length {len(got)}, expected {len(want)}"
        for index, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_same(one, other, f"{where}[{index}]", tolerance)
    else:
        assert got == want, f"{where}: {got!r}, expected {want!r}"


def _assert_same_tensor(got: Tensor, want: Tensor, where: str, tolerance: float) -> None:
    assert got.dtype is want.dtype, f"{where}: {got.dtype}, expected {want.dtype}"
    assert got.shape == want.shape, f"{where}: {tuple(got.shape)}, expected {tuple(want.shape)}"
    assert got.requires_grad == want.requires_grad, f"{where}: requires_grad={got.requires_grad}"
    torch.testing.assert_close(
        got, want, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text: f"{where}: {text}"
    )
    if tolerance == 0:
        assert got.stride() == want.stride(), f"{where}: strides {got.stride()}, expected {want.stride()}"
