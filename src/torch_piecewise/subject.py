"""What is compiled: a callable, as it is now."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import Module

from torch_piecewise.call_form import with_owner_named
from torch_piecewise.torch_private.modules import traceable_call


class Subject:
    """One callable: what to trace, what to run uncompiled, and how people call its arguments.

    Args:
        function: what to trace: a function or bound method.
        owner: the module or object it is bound to; None for a plain function.
        original: what to run for calls that are not compiled.
        declared: has the parameters that people name; None: ``function`` has. Given for the call of a module,
            whose hooks decide anew what to trace.

    Attributes:
        plain: ``function``, unbound.
        signature: the parameters that people name.
        is_module_call: whether it is what a module's own call does.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        owner: Any,
        original: Callable[..., Any],
        declared: Callable[..., Any] | None,
    ) -> None:
        self.owner = owner
        self.original = original
        self.signature = inspect.signature(declared or function)
        self.is_module_call = declared is not None
        self._take(with_owner_named(function))

    @property
    def label(self) -> str:
        """What people call it."""
        return str(type(self.owner).__qualname__ if self.owner is not None else self.plain.__qualname__)

    def takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether such a call has the arguments it needs, and no others."""
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    def devices(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[str]:
        """Types of the devices that parameters and a call's tensors are on (``cpu``)."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if isinstance(self.owner, Module):
            tensors.extend(self.owner.parameters())
        return frozenset(tensor.device.type for tensor in tensors)

    def look_again(self) -> bool:
        """Find out what to trace now that hooks may have come or gone; whether it is another function."""
        if not isinstance(self.owner, Module) or not self.is_module_call:
            return False
        function = with_owner_named(traceable_call(self.owner))
        if getattr(function, "__func__", function) is self.plain:
            return False
        self._take(function)
        self.original = traceable_call(self.owner)
        return True

    def _take(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.plain: Any = getattr(function, "__func__", function)
