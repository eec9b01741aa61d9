"""Private torch names that the cache key needs; to be merged into ``torch_private``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket

# Set on a module later than its __init__: by nn.Module.compile, and by transformers while it loads weights.
_ADDED_LATER = frozenset({"_compiled_call_impl", "_is_hf_initialized"})

# Hooks that change what a call computes. 2.11 to 2.13.
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)


def module_bookkeeping() -> frozenset[str]:
    """Names of the attributes that ``nn.Module`` itself sets on an instance, except ``training``.

    Read from a fresh module, so that a version of torch which adds one is covered.
    """
    return frozenset(vars(nn.Module())) - {"training"} | _ADDED_LATER


def module_hooks(module: nn.Module) -> dict[str, list[Any]]:
    """The hooks of a module that change what it computes, by kind; kinds without hooks are left out."""
    hooks = {name.strip("_"): list(vars(module).get(name, {}).values()) for name in _HOOKS}
    return {name: found for name, found in hooks.items() if found}


def registered_children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Submodules in order of registration, one that is registered twice both times.

    The public ``named_children`` leaves out the second name of a shared one. 2.11 to 2.13.
    """
    return [(name, child) for name, child in vars(module).get("_modules", {}).items() if child is not None]


def registered_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters, then buffers of the module itself, in order of registration; those that are None left out.

    The public iterators walk and deduplicate, which costs several times as much for each of many modules.
    2.11 to 2.13.
    """
    own = vars(module)
    tensors = [*own.get("_parameters", {}).items(), *own.get("_buffers", {}).items()]
    return [(name, tensor) for name, tensor in tensors if tensor is not None]


def operator_name(value: object) -> tuple[str, Callable[..., Any] | None] | None:
    """Name of an operator of the dispatcher and, for one of ``torch.library.custom_op``, its Python body.

    The objects themselves grow caches with use, so their attributes say nothing. 2.11 to 2.13: neither the
    classes nor ``_qualname`` and ``_init_fn`` have public names.

    Returns:
        None if ``value`` is no operator.
    """
    if isinstance(value, CustomOpDef):
        return value._qualname, value._init_fn
    if isinstance(value, OpOverload | OpOverloadPacket):
        return str(value), None
    return None
