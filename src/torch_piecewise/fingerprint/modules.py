"""Canonical lines of a module that a graph calls as a whole: its class, settings, tensors and children."""

from __future__ import annotations

from collections.abc import Callable

import torch

from torch_piecewise.errors import FingerprintError

_HELD = {"_parameters": "parameter", "_buffers": "buffer", "_modules": "child"}


def module_lines(module: torch.nn.Module, attribute: Callable[[object], str]) -> list[str]:
    """One line for the class and one for each attribute, sorted by name.

    Args:
        attribute: canonical text of what a module holds.

    Raises:
        FingerprintError: it has hooks, or an attribute without a stable identity.
    """
    refuse_hooks(module)
    own = {name: value for name, value in vars(module).items() if name not in _every_module()}
    lines = [f"{attribute(type(module))} training={module.training}"]
    for holder, kind in _HELD.items():
        held = vars(module)[holder]
        lines += [f"{kind} {name} = {attribute(held[name])}" for name in sorted(held)]
    return lines + [f"attribute {name} = {attribute(own[name])}" for name in sorted(own)]


def refuse_hooks(module: torch.nn.Module) -> None:
    """Check that calling a module runs its ``forward`` and nothing else.

    Raises:
        FingerprintError: it has forward, backward or state hooks.
    """
    for name in _every_module() - _HELD.keys():
        value = vars(module).get(name)
        if isinstance(value, dict) and value:
            raise FingerprintError(
                f"A {type(module).__qualname__} in the graph has hooks",
                expected="a module whose forward is all that a call runs",
                got=f"{len(value)} in {name}",
                hint="remove the hooks, or trace the model so that the module is inlined",
            )


def _every_module() -> frozenset[str]:
    return frozenset(vars(torch.nn.Module()))
