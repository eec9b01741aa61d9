"""Copies of a piece's inputs that lie in memory as the inputs do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def copied(values: Sequence[Any]) -> tuple[Any, ...]:
    """``values`` with every tensor copied: same strides, and what shared memory shares it in the copies."""
    spans: dict[tuple[int, torch.dtype], tuple[int, int]] = {}
    for value in values:
        if _is_plain(value):
            start, end = spans.get(_key(value), (value.storage_offset(), 0))
            own = value.storage_offset()
            spans[_key(value)] = (min(start, own), max(end, own + _extent(value)))
    flat: dict[tuple[int, torch.dtype], Tensor] = {}
    return tuple(_copy(value, spans, flat) for value in values)


def _copy(
    value: Any,
    spans: dict[tuple[int, torch.dtype], tuple[int, int]],
    flat: dict[tuple[int, torch.dtype], Tensor],
) -> Any:
    if not isinstance(value, Tensor):
        return value
    if not _is_plain(value):
        return value.detach().clone().requires_grad_(value.requires_grad)
    key = _key(value)
    start, end = spans[key]
    if key not in flat:
        flat[key] = value.detach().as_strided((end - start,), (1,), start).clone()
    view = flat[key].as_strided(value.shape, value.stride(), value.storage_offset() - start)
    return view.detach().requires_grad_(value.requires_grad)


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and value.numel() > 0


def _key(value: Tensor) -> tuple[int, torch.dtype]:
    return value.untyped_storage().data_ptr(), value.dtype


def _extent(value: Tensor) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
