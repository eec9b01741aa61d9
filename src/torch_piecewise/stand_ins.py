"""What stands for a call's dynamic tensors in a trace: marked as dynamic, and of sizes without meanings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import Any

import torch

from torch_piecewise.call_form import CallForm
from torch_piecewise.config import Config
from torch_piecewise.dynamic_dims import Dims
from torch_piecewise.torch_private import dynamo

_SUBSTITUTE = 7
"""Size that stands for a dynamic dim of size 0 or 1 in a trace: sizes with meanings of their own."""


class Small(Enum):
    """How a dynamic dim of size 0 or 1 is traced."""

    SUBSTITUTED = auto()
    DYNAMIC = auto()
    FIXED = auto()


def attempts(call: CallForm, true_sizes: Mapping[str, int], config: Config) -> tuple[Small, ...]:
    """The ways to trace a call of these sizes, in the order in which to try them."""
    if not {0, 1} & set(true_sizes.values()):
        return (Small.DYNAMIC,)
    if _share_memory(call.values.values()):  # which stand-ins of other sizes would not
        return Small.DYNAMIC, Small.FIXED
    if config.dynamic_shapes == "backed":
        # Such a size is a constant to torch in this mode.
        return Small.SUBSTITUTED, Small.FIXED
    return Small.SUBSTITUTED, Small.DYNAMIC, Small.FIXED


def _share_memory(values: Iterable[Any]) -> bool:
    tensors = {
        id(value): value
        for value in values
        if isinstance(value, torch.Tensor) and value.layout is torch.strided and value.numel() > 0
    }
    return len({value.untyped_storage().data_ptr() for value in tensors.values()}) < len(tensors)


def stand_ins(call: CallForm, dims: Dims, small: Small, config: Config) -> dict[int, torch.Tensor]:
    """By ``id``, what stands for each dynamic tensor: the same memory or size, marked for the trace."""
    copies: dict[int, torch.Tensor] = {}
    for name, by_dim in dims.items():
        value = call.values.get(name)
        if not isinstance(value, torch.Tensor):
            continue
        if id(value) not in copies:
            copies[id(value)] = _stand_in(value, by_dim, small)
        unbacked = {dim % value.dim() for dim in config.unbacked_dims().get(name, ())}
        for position in by_dim:
            if small is Small.FIXED and value.size(position) in (0, 1):
                continue
            if config.dynamic_shapes == "unbacked" or position in unbacked:
                dynamo.mark_unbacked(copies[id(value)], position)
            else:
                dynamo.mark_dynamic(copies[id(value)], position)
    return copies


def _stand_in(value: torch.Tensor, by_dim: Mapping[int, Any], small: Small) -> torch.Tensor:
    sizes = list(value.shape)
    for dim in by_dim:
        if small is Small.SUBSTITUTED and sizes[dim] in (0, 1):
            sizes[dim] = _SUBSTITUTE
    stand_in = value.detach() if sizes == list(value.shape) else _laid_out_like(value, sizes)
    return stand_in.requires_grad_(value.requires_grad)


def _laid_out_like(value: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Memory of ``sizes``, its dims in the order of ``value``'s: dense where it is, else as far apart."""
    dtype, device = value.dtype, value.device
    if value.is_contiguous():
        return torch.empty(sizes, dtype=dtype, device=device)
    outermost_first = sorted(range(value.dim()), key=value.stride, reverse=True)
    dense = torch.empty_permuted(value.shape, outermost_first, device="meta").stride()
    steps = zip(value.shape, value.stride(), dense, strict=True)
    if all(size == 1 or stride == wanted for size, stride, wanted in steps):
        return torch.empty_permuted(sizes, outermost_first, dtype=dtype, device=device)
    return torch.empty_strided(sizes, value.stride(), dtype=dtype, device=device)
