"""The identity of code: what is loaded and would run, not what a file says by now.

A file edited after it was imported would otherwise name code that it does not hold. Line numbers, file names
and comments do not count. Only code of torch and of the standard library goes by its name: their versions are
ingredients of their own.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Callable
from typing import Any

import torch

from torch_piecewise.cache_key.base import PythonValue
from torch_piecewise.runtime.code import code_parts

_BY_VERSION = frozenset({"torch", "builtins"})
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_SIMPLE = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_DEEPEST = 4


def goes_by_name(module: str | None) -> bool:
    """Whether code of that module is identified by a version instead of its content."""
    top = (module or "").split(".", 1)[0]
    if top in _BY_VERSION:
        return True
    if top not in sys.stdlib_module_names:
        return False
    # A script folder may hold a "code.py" or "queue.py" of its own.
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is None or file.startswith(_STANDARD_LIBRARY)


def name_of(thing: PythonValue) -> str:
    """``package.module.Qualified.name`` of a class or function."""
    module = getattr(thing, "__module__", None)
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None) or type(thing).__name__
    return f"{module}.{name}" if isinstance(module, str) and module != "builtins" else str(name)


def code_digest(function: Callable[..., Any], *, values: bool = True) -> str:
    """Digest of a Python function's code; what has no code counts by its name.

    Args:
        values: whether defaults and what the closure holds count too, or only the code itself.
    """
    digester = _Digester(values)
    digester.add_callable(function)
    return digester.text()


def class_digest(cls: type) -> str:
    """Digest of the functions of a class and of its bases, save those that go by name.

    Plain values of the class (``eps = 1e-5``) are not in it: see ``class_values``.
    """
    digester = _Digester()
    for base in cls.__mro__:
        digester.add(name_of(base))
        if goes_by_name(base.__module__):
            continue
        for name, value in sorted(vars(base).items()):
            digester.add_member(name, value)
    return digester.text()


def class_values(cls: type) -> dict[str, Any]:
    """Plain public values set on a class and its bases, the nearest first; by name."""
    values: dict[str, Any] = {}
    for base in cls.__mro__:
        if goes_by_name(base.__module__):
            continue
        for name, value in vars(base).items():
            if not name.startswith("__") and isinstance(value, _SIMPLE):
                values.setdefault(name, value)
    return values


def function_values(function: types.FunctionType) -> dict[str, Any]:
    """Defaults by ``(default name)`` and what the closure holds by ``(closure name)``."""
    code = function.__code__
    positional = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    named = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    values = {
        f"(default {name})": value for name, value in {**named, **(function.__kwdefaults__ or {})}.items()
    }
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        # A cell without contents belongs to a name that was not assigned yet.
        with contextlib.suppress(ValueError):
            values[f"(closure {name})"] = cell.cell_contents
    return values


class _Digester:
    def __init__(self, values: bool = True) -> None:
        self._values = values
        self._hash = hashlib.sha256()
        self._seen: set[int] = set()

    def text(self) -> str:
        return f"sha256:{self._hash.hexdigest()[:32]}"

    def add(self, *parts: str) -> None:
        for part in parts:
            data = part.encode("utf-8", "surrogatepass")
            self._hash.update(b"%d:" % len(data))
            self._hash.update(data)

    def add_member(self, name: str, value: PythonValue) -> None:
        if isinstance(value, staticmethod | classmethod):
            self.add("method", name, type(value).__name__)
            self.add_callable(value.__func__)
        elif isinstance(value, property):
            self.add("property", name)
            for part in (value.fget, value.fset, value.fdel):
                if part is not None:
                    self.add_callable(part)
        elif isinstance(value, functools.cached_property):
            self.add("cached_property", name)
            self.add_callable(value.func)
        elif isinstance(value, types.FunctionType):
            self.add("method", name)
            self.add_callable(value)

    def add_callable(self, function: PythonValue) -> None:
        if id(function) in self._seen:
            return self.add("seen", name_of(function))
        self._seen.add(id(function))
        if isinstance(function, types.MethodType):
            return self.add_callable(function.__func__)
        if isinstance(function, functools.partial):
            self.add("partial")
            return self.add_callable(function.func)
        wrapped = getattr(function, "__wrapped__", None)
        if not isinstance(function, types.FunctionType):
            self.add("named", name_of(function))
            # functools.lru_cache and others written in C keep the function they call here.
            if callable(wrapped):
                self.add_callable(wrapped)
            return None
        if goes_by_name(function.__module__) and wrapped is None:
            return self.add("named", name_of(function))
        self.add("code", *code_parts(function.__code__))
        if not self._values:
            return None
        for value in (*(function.__defaults__ or ()), *_sorted_values(function.__kwdefaults__ or {})):
            self._add_value(value)
        for cell in function.__closure__ or ():
            self._add_cell(cell)
        return None

    def _add_cell(self, cell: types.CellType) -> None:
        try:
            value = cell.cell_contents
        except ValueError:
            return self.add("empty cell")
        return self._add_value(value)

    def _add_value(self, value: PythonValue) -> None:
        if callable(value) and not isinstance(value, type):
            return self.add_callable(value)
        return self.add("value", constant_text(value))


def _sorted_values(mapping: dict[str, Any]) -> list[Any]:
    return [value for _, value in sorted(mapping.items())]


def constant_text(value: PythonValue, depth: int = 0) -> str:
    """A text that is the same in every process: sets sorted, unknown objects by their class's name."""
    kind = type(value)
    if kind in _SIMPLE:
        return repr(value)
    if depth > _DEEPEST:
        return f"object of {name_of(kind)}"
    if kind in (tuple, list):
        return f"{kind.__name__}({', '.join(constant_text(item, depth + 1) for item in value)})"
    if kind in (set, frozenset):
        return f"{kind.__name__}({', '.join(sorted(constant_text(item, depth + 1) for item in value))})"
    if kind is dict:
        pairs = (f"{constant_text(k, depth + 1)}: {constant_text(v, depth + 1)}" for k, v in value.items())
        return f"dict({', '.join(pairs)})"
    if isinstance(value, enum.Enum):
        return f"{name_of(kind)}.{value.name}"
    if isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format | torch.Size):
        return repr(value)
    return f"class {name_of(value)}" if isinstance(value, type) else f"object of {name_of(kind)}"
