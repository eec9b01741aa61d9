"""The calling convention of a trace, as a value that can be kept and used by another process.

What a call has to look like, where the graph's inputs are in it, and how the graph's outputs become its
result.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch_piecewise.piece import InputSpec

TAIL_ARGUMENT = "__graph_outputs"
"""Name of the tail's argument that takes the graph's outputs."""


@dataclass(frozen=True)
class Check:
    """One condition on a call.

    Attributes:
        expression: Python, over the call's arguments and the names of :attr:`Convention.values`, which begin
            with ``§`` until the text is written out; true when the condition holds.
        text: what was expected, for people, naming the argument.
        got: Python expression that shows what was given.
        surroundings: whether it is about a global or about a variable that the traced function closes over.
    """

    expression: str
    text: str
    got: str
    surroundings: bool = False


@dataclass(frozen=True)
class Convention:
    """How calls of one trace go in and out.

    Attributes:
        owner_name: what the traced code calls the object it is bound to; None for a plain function.
        sources: for each graph input, the expression that finds it, over ``L`` (arguments) and ``G``
            (globals of the traced function).
        specs: description of each graph input; None where it has none.
        checks: what a call has to meet.
        values: what the checks name (types, constants).
        tail: code that turns the graph's outputs into the call's result and replays Python side effects.
        tail_imports: alias -> module name: globals of the tail beside the traced function's own.
        tail_builtins: names under which the tail expects the dict of builtins.
        unchecked: whether the caller promised that every call is like the traced one: not even the model's
            own parameters and submodules are compared.
    """

    owner_name: str | None
    sources: tuple[str, ...]
    specs: tuple[InputSpec | None, ...]
    checks: tuple[Check, ...]
    values: Mapping[str, Any] = field(repr=False)
    tail: types.CodeType = field(repr=False)
    tail_imports: Mapping[str, str] = field(repr=False)
    tail_builtins: tuple[str, ...] = ()
    unchecked: bool = False

    def tail_function(self, traced: types.FunctionType) -> Callable[..., Any]:
        """The tail over the globals and the closure of the ``traced`` function."""
        modules = {alias: importlib.import_module(name) for alias, name in self.tail_imports.items()}
        builtins = {name: vars(importlib.import_module("builtins")) for name in self.tail_builtins}
        scope = {**traced.__globals__, **modules, **builtins}
        cells = dict(zip(traced.__code__.co_freevars, traced.__closure__ or (), strict=True))
        closure = tuple(cells[name] for name in self.tail.co_freevars)
        return types.FunctionType(self.tail, scope, closure=closure or None)


def files_of_constants(code: types.CodeType) -> tuple[str, ...]:
    """The files of the classes that code calls as constants, which decide what its values become."""
    files: list[str] = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            files += files_of_constants(constant)
            continue
        # A named tuple is made by ``Class._make``.
        made = constant if isinstance(constant, type) else getattr(constant, "__self__", None)
        if isinstance(made, type):
            file = getattr(sys.modules.get(made.__module__), "__file__", None)
            files += [file] if file is not None else []
    return tuple(dict.fromkeys(files))
