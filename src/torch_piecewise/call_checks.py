"""The functions that the checks of a call use while it runs."""

from __future__ import annotations

import sys
from typing import Any

import torch


def check_functions() -> dict[str, Any]:
    """The functions that check expressions call."""
    return {
        "§grad_enabled": torch.is_grad_enabled,
        "§autocast": autocast_state,
        "§Tensor": torch.Tensor,
        "§show": show,
        "§sharing": sharing,
        "§modules": sys.modules,
        "___from_numpy": from_numpy,
    }


def autocast_state() -> tuple[Any, ...] | None:
    """What autocast would do now: None when it is off everywhere."""
    state = tuple(
        (device, torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
        if torch.is_autocast_enabled(device)
    )
    return state or None


def from_numpy(value: Any) -> Any:
    """A numpy array as the tensor that a trace makes of it; Dynamo calls this ``___from_numpy``."""
    return torch.as_tensor(value) if type(value).__module__ == "numpy" else value


def sharing(*tensors: torch.Tensor) -> tuple[int, ...]:
    """For each tensor, the position of the first one that lies in the same memory."""
    first: dict[int, int] = {}
    memories = ((tensor.untyped_storage().data_ptr(), index) for index, tensor in enumerate(tensors))
    # Tensors without elements have no memory to share.
    return tuple(first.setdefault(memory or -1 - index, index) for memory, index in memories)


def show(value: Any) -> str:
    """An argument as messages show it."""
    if not isinstance(value, torch.Tensor):
        return f"{type(value).__name__} {value!r}"[:100]
    return (
        f"{value.dtype}, shape {tuple(value.shape)}, strides {value.stride()}, "
        f"requires_grad={value.requires_grad}, {value.device}"
    )
