"""The functions that the checks of a call use while it runs."""

from __future__ import annotations

import re
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
        "§told": told,
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


_HOLDS_TENSORS = re.compile(r"\b(tensor|array)\(|Parameter containing:")


def from_numpy(value: Any) -> Any:
    """A numpy array as the tensor that a trace makes of it; Dynamo calls this ``___from_numpy``."""
    return torch.as_tensor(value) if type(value).__module__ == "numpy" else value


def sharing(*tensors: torch.Tensor) -> tuple[int, ...]:
    """For each tensor, the position of the first one that lies in the same memory."""
    first: dict[int, int] = {}
    memories = ((tensor.untyped_storage().data_ptr(), index) for index, tensor in enumerate(tensors))
    # Tensors without elements have no memory to share.
    return tuple(first.setdefault(memory or -1 - index, index) for memory, index in memories)


def told(value: Any) -> str:
    """An argument as messages tell of it: tensors, within others too, without what they hold."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype}, shape {tuple(value.shape)}, {value.device}"
    text = _told_of_items(value) if isinstance(value, list | tuple | dict) else repr(value)
    return f"a {type(value).__name__}" if _HOLDS_TENSORS.search(text) else text


def _told_of_items(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {told(item)}" for key, item in value.items()) + "}"
    items = ", ".join(map(told, value))
    return f"[{items}]" if isinstance(value, list) else f"({items}{',' if len(value) == 1 else ''})"


def show(value: Any) -> str:
    """An argument as messages show it where a tensor was expected."""
    if not isinstance(value, torch.Tensor):
        return f"{type(value).__name__} {told(value)}"[:100]
    return (
        f"{value.dtype}, shape {tuple(value.shape)}, strides {value.stride()}, "
        f"requires_grad={value.requires_grad}, {value.device}"
    )
