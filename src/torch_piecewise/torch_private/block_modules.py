"""Whether two modules look alike before one is traced as a copy of the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import Module

from torch_piecewise.torch_private.block_views import NotAlike
from torch_piecewise.torch_private.store import module_hooks, registered_children, registered_tensors

_TABLES = frozenset(
    {
        "_parameters",
        "_buffers",
        "_modules",
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_backward_hooks",
        "_backward_pre_hooks",
    }
)
"""What a module keeps parameters, submodules and hooks in; such tables are never shared between modules."""


def check_alike(old: Module, new: Module) -> None:
    """Check what the trace of a block takes for granted about another: classes, names, tensors, hooks.

    Values of attributes are not compared here, only those that the trace read are, by their sources.

    Raises:
        NotAlike: names the first thing that differs.
    """
    mine, theirs = list(_tree(old)), list(_tree(new))
    if [path for path, _ in mine] != [path for path, _ in theirs]:
        raise NotAlike("they have other submodules")
    for (path, one), (_, other) in zip(mine, theirs, strict=True):
        difference = _difference(one, other)
        if difference:
            raise NotAlike(f"{f'{path}: ' if path else ''}{difference}")
    if _sharing(mine) != _sharing(theirs):
        raise NotAlike("they share modules or tensors in another way")


def ids_compared(module: Module) -> frozenset[int]:
    """Ids of what :func:`check_alike` compares: submodules, their tensors, the tables that hold them."""
    found: set[int] = set()
    for one in module.modules():
        found.add(id(one))
        found.update(id(tensor) for _, tensor in registered_tensors(one))
        found.update(id(table) for name, table in vars(one).items() if name in _TABLES)
    return frozenset(found)


def _tree(module: Module, path: str = "", seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, Module]]:
    yield path, module
    if id(module) in seen:
        raise NotAlike("a submodule holds a module that it is part of")
    for name, child in registered_children(module):
        yield from _tree(child, f"{path}.{name}" if path else name, seen | {id(module)})


def _difference(one: Module, other: Module) -> str:
    if type(one) is not type(other):
        return f"class {type(one).__name__} and {type(other).__name__}"
    if one.training is not other.training:
        return "training mode differs"
    if any(module_hooks(one).values()) or any(module_hooks(other).values()):
        return "it has hooks"
    if vars(one).keys() != vars(other).keys():
        return "they have other attributes"
    if "forward" in vars(one):
        return "its forward was replaced by hand"
    tensors = [[(name, _facts(value)) for name, value in registered_tensors(m)] for m in (one, other)]
    return "" if tensors[0] == tensors[1] else "parameters or buffers differ in kind"


def _facts(value: torch.Tensor | None) -> Any:
    if value is None:
        return None
    strides = value.stride() if value.layout is torch.strided else None
    return type(value), value.dtype, value.device, value.layout, value.shape, strides, value.requires_grad


def _sharing(tree: list[tuple[str, Module]]) -> list[int]:
    """Equal for trees in which the same places hold one thing."""
    first: dict[int, int] = {}
    return [
        first.setdefault(id(thing), len(first))
        for _, module in tree
        for thing in (module, *(tensor for _, tensor in registered_tensors(module)))
    ]
