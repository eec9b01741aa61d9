"""Modules and calls: the slot that ``nn.Module.compile()`` fills, and what is active around a call.

``nn.Module.__call__`` reads ``_compiled_call_impl``; torch leaves it out of pickles and copies, and it is
no part of ``state_dict``. 2.11 and 2.13.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Module


def compiled_call(module: Module) -> Callable[..., Any] | None:
    """What runs instead of ``module``'s own forward, if anything."""
    return module._compiled_call_impl


def set_compiled_call(module: Module, call: Callable[..., Any] | None) -> None:
    """Run ``call`` for ``module(...)``; None gives the module its own forward back."""
    module._compiled_call_impl = call


def inside_torch_compile(value: Any) -> Any:
    """What ``torch.compile`` or ``nn.Module.compile`` was called with to make ``value``; None for others.

    Dynamo's wrappers name it by these attributes (2.11 and 2.13); nothing public tells.
    """
    found = getattr(value, "_torchdynamo_orig_callable", None)
    if isinstance(value, Module):
        found = vars(value).get("_modules", {}).get("_orig_mod")
        if (
            found is None
            and getattr(value._compiled_call_impl, "_torchdynamo_orig_callable", None) is not None
        ):
            found = value
    return found


def give_back(module: Module) -> None:
    """Let ``module(...)`` run its own forward again, also while other threads call it.

    ``nn.Module.__call__`` reads the slot twice, so that None in it may reach a call that has seen a function
    there. What it holds from now on is what the call does by itself.
    """
    if module._compiled_call_impl is not None:
        module._compiled_call_impl = module._call_impl


def traceable_call(module: Module) -> Callable[..., Any]:
    """The bound method to trace for ``module(...)``: ``forward``, or the hook-running call around it.

    A ``__call__`` of the class's own runs around the compiled call, as it runs around ``forward``.
    """
    own_hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return module._call_impl if any(own_hooks) else module.forward


def uncompiled_call(module: Module) -> Callable[..., Any]:
    """The call that ``module(...)`` makes by itself: hooks, those added later too, around ``forward``."""
    call: Callable[..., Any] = module._call_impl
    return call


def hook_tables(module: Module) -> tuple[dict[int, Any], ...]:
    """The tables of a module's forward hooks."""
    return (module._forward_hooks, module._forward_pre_hooks)


def is_dynamo_compiling() -> bool:
    """Whether this code runs under a Dynamo trace."""
    return torch.compiler.is_dynamo_compiling()


def raised_by_model(error: BaseException) -> bool:
    """Whether a trace ended with ``error`` because the model or one of its ops refuses such a call.

    Dynamo says so by the kind of its refusal (``Unsupported.gb_type``), and by ``TorchRuntimeError`` where
    an op refuses (2.11, 2.13). Told by name: a start from the store must not import Dynamo.
    """
    cause = error.__cause__
    observed = getattr(cause, "gb_type", None) == "Observed exception"
    return observed or type(cause).__name__ == "TorchRuntimeError"


def dispatch_modes_active() -> bool:
    """Whether a ``TorchDispatchMode`` or functorch transform would want to see operator calls."""
    return torch._C._len_torch_dispatch_stack() > 0
