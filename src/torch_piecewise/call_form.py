"""How one call passes its arguments: the names people know them by, and where the traced code finds each."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CallForm:
    """One call.

    Attributes:
        bound: the arguments as the traced code takes them, which for a decorated function are often
            ``*args`` and ``**kwargs`` alone.
        values: argument name -> value; an argument that was not given is not in it.
        sources: argument name -> expression over ``L`` (the traced code's arguments) that finds it.
    """

    bound: inspect.BoundArguments
    values: Mapping[str, Any]
    sources: Mapping[str, str]

    def replaced(self, others: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's positional and keyword arguments, each whose ``id`` is in ``others`` replaced."""
        args = tuple(others.get(id(value), value) for value in self.bound.args)
        return args, {name: others.get(id(value), value) for name, value in self.bound.kwargs.items()}


def call_form(
    function: Callable[..., Any], named: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> CallForm:
    """How ``function(*args, **kwargs)`` passes its arguments.

    Args:
        function: what is traced; a decorated function stands for itself, not for what it wraps.
        named: the parameters by the names people know: of the function that is wrapped.

    Raises:
        TypeError: ``function`` takes no such call.
    """
    bound = inspect.signature(function, follow_wrapped=False).bind(*args, **kwargs)
    names = [name for name, one in named.parameters.items() if one.kind in _BY_POSITION]
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for position, (name, parameter) in enumerate(bound.signature.parameters.items()):
        value = bound.arguments.get(name)
        if parameter.kind is parameter.VAR_POSITIONAL:
            for index, (known, item) in enumerate(zip(names[position:], value or (), strict=False)):
                values[known], sources[known] = item, f"L[{name!r}][{index}]"
        elif parameter.kind is parameter.VAR_KEYWORD:
            for key, item in (value or {}).items():
                values[key], sources[key] = item, f"L[{name!r}][{key!r}]"
        elif name in bound.arguments:
            values[name], sources[name] = value, f"L[{name!r}]"
    return CallForm(bound, values, sources)


def with_owner_named(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``; for a method whose code takes its object in ``*args``, one that names it ``self``.

    Such are methods under ``torch.no_grad()`` and other decorators. What is read off the object has to be
    told from what is read off the arguments.
    """
    plain = getattr(function, "__func__", None)
    if plain is None:
        return function
    parameters = list(inspect.signature(plain, follow_wrapped=False).parameters.values())
    if not parameters or parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        return function

    @functools.wraps(plain)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return plain(self, *args, **kwargs)

    return types.MethodType(call, function.__self__)  # type: ignore[attr-defined]  # it is a method


_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
