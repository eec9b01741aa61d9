"""Private torch names that graph passes need, each behind a small function. All from 2.11 to 2.13."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch

# The classes of ``torch.ops.ns.op.overload`` and of higher-order operators have no public name.
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

__all__ = ["HigherOrderOperator", "OpOverload", "OpOverloadPacket", "is_overload"]

# Inductor's config keys where a user can put a pass of his own (torch._inductor.config, 2.11 to 2.13).
POST_GRAD_HOOK = "post_grad_custom_post_pass"
OTHER_HOOKS = frozenset(
    {
        "post_grad_custom_pre_pass",
        "joint_custom_pre_pass",
        "joint_custom_post_pass",
        "pre_grad_custom_pass",
    }
)


def is_overload(target: object) -> TypeGuard[OpOverload[..., Any]]:
    """Whether ``target`` is one overload of a registered operator."""
    return isinstance(target, OpOverload)


def schema_of(op: OpOverload[..., Any]) -> torch.FunctionSchema:
    """The operator's schema. ``_schema`` is the only way to it that needs no parsing."""
    return op._schema


def writes(argument: torch.Argument) -> bool:
    """Whether the schema says that the operator writes to this argument."""
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def alias_sets(argument: torch.Argument) -> frozenset[str]:
    """The names of the alias sets an argument or result is in.

    ``{"a"}`` for ``Tensor(a!)``, ``{"*"}`` for any set, none for a fresh value.
    """
    info = argument.alias_info
    if info is None:
        return frozenset()
    # A list has alias information, but its names are on its elements.
    return frozenset({*info.before_set, *info.after_set}) or frozenset({"*"})


def storage_key(value: object) -> int | None:
    """A number that tensors of one storage share while they live; None without a storage.

    Fake tensors have no addresses, so the storage object itself (``_cdata``) is what tells them apart.
    """
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return int(value.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        # Sparse and other storage-less tensors.
        return None


def fake_mode_of(value: object) -> FakeTensorMode | None:
    """The mode that made this fake tensor; None for anything else."""
    return value.fake_mode if isinstance(value, FakeTensor) else None


@contextlib.contextmanager
def _without_guards(mode: FakeTensorMode) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(mode)
        if mode.shape_env is not None:
            stack.enter_context(mode.shape_env.suppress_guards())
        yield


def run_fake(
    op: Callable[..., Any], base: object, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> Any:
    """What ``op(base, *args)`` gives for a fake tensor ``base``, leaving no shape guard behind.

    Returns None where ``base`` is no fake tensor: then nothing can be said.
    """
    mode = fake_mode_of(base)
    if mode is None:
        return None
    with _without_guards(mode):
        return op(base, *args, **(kwargs or {}))
