"""Classes and functions that stay uncompiled, and which class of a hierarchy decides."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from torch.nn import Module

from torch_piecewise.errors import ConfigError

T = TypeVar("T")

_MARK = "__torch_piecewise__"


class Decision(Enum):
    """What a decorator said about a class."""

    COMPILED = "compiled"
    IGNORED = "ignored"


def ignore(target: T) -> T:
    """Decorator: this module class, function or method stays uncompiled.

    ::

        @tp.ignore
        class Sampler(torch.nn.Module): ...

    A class: its instances are not compiled where a class it inherits from is decorated with ``tp.compile``;
    a class that inherits from it and is decorated itself is compiled again. Inside a compiled model the
    calls of such a module, function or method are traced with the rest, and run as they are, between
    compiled pieces, as splitting ops do. Code that cannot be traced has to be a ``tp.splitting_op``.

    Raises:
        ConfigError: ``target`` is something else.
    """
    if isinstance(target, type) and issubclass(target, Module):
        decide(target, Decision.IGNORED)
        return target
    if inspect.isfunction(target):
        return _ignored(target)  # type: ignore[return-value]  # a function for a function
    raise ConfigError(
        "tp.ignore was given something that is not compiled by itself",
        expected="an nn.Module class, a function, or a method in a class body",
        got=f"{type(target).__name__}: {target!r}"[:200],
        hint="for one module of a model, name its class in splitting_ops",
    )


def decide(cls: type[Module], decision: Decision) -> None:
    """Note on ``cls`` what its decorator says."""
    setattr(cls, _MARK, decision)


def decided(cls: type) -> tuple[type | None, Decision | None]:
    """The class nearest to ``cls`` in its hierarchy that a decorator spoke about, and what it said."""
    for one in cls.__mro__:
        if _MARK in vars(one):
            return one, vars(one)[_MARK]
    return None, None


def is_ignored(cls: type) -> bool:
    """Whether instances of ``cls`` stay uncompiled."""
    return decided(cls)[1] is Decision.IGNORED


def _ignored(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def ignored_call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return ignored_call


# Where a traced graph says that a node comes from: in a frame of the wrapper above.
_FRAME = re.compile(rf'File "{re.escape(_ignored.__code__.co_filename)}", line \d+, in ignored_call\b')


def runs_in_ignored_call(stack_trace: str | None) -> bool:
    """Whether code with this stack, as traced graphs keep it, runs inside an ignored function."""
    return stack_trace is not None and _FRAME.search(stack_trace) is not None
