"""The identity of code: a digest that changes when what the code does may change, and only then.

It covers source, default values, closures, fields, and, again and again, the functions, classes and
constants that are named. Code of the standard library, of torch and of other installed packages is named
with its package's version instead of being read. Nothing in it depends on addresses, hash seeds, module
search paths or the process. What cannot be named so is refused.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GenericAlias,
    MethodType,
    ModuleType,
    UnionType,
)
from typing import Any, NoReturn

import torch

from torch_piecewise.errors import FingerprintError
from torch_piecewise.passes.ownership import Ownership, top_of
from torch_piecewise.passes.references import references
from torch_piecewise.torch_private.passes import HigherOrderOperator, OpOverload, OpOverloadPacket

_PLAIN = (type(None), type(Ellipsis), bool, int, float, complex, str, bytes)
_SPELLED = (
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    HigherOrderOperator,
    OpOverload,
    OpOverloadPacket,
    GenericAlias,
    UnionType,
)
# Tools that never decide what a rewrite does.
_NAMED_ONLY = (
    logging.Logger,
    logging.LoggerAdapter,
    ContextVar,
    type(threading.Lock()),
    type(threading.RLock()),
)
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
_MACHINERY = frozenset({"_abc_impl", "__dict__", "__weakref__"})


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a piece of code is.

    Attributes:
        digest: SHA-256, hexadecimal.
        names: ``module.qualname`` of every function and class it rests on.
    """

    digest: str
    names: frozenset[str]


def identity_of(value: object, *, what: str, stop_at: tuple[type, ...] = ()) -> Identity:
    """The identity of a function, a class, or an instance with its class.

    Args:
        value: what to identify.
        what: how messages call it.
        stop_at: base classes that count by name alone.

    Raises:
        FingerprintError: it rests on something without a stable name: a lambda, a local function, code
            whose source is not at hand, or a live object.
    """
    module = getattr(value, "__module__", None) or type(value).__module__
    walk = _Walk(what, home=frozenset({top_of(module), "torch_piecewise"}), stop_at=stop_at)
    root = walk.value(value, what)
    text = "\n".join([root, *walk.parts])
    return Identity(hashlib.sha256(text.encode()).hexdigest(), frozenset(walk.names))


def _qualified(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


class _Walk:
    """One walk over everything that some code rests on.

    Attributes:
        parts: the text of each function and class met, in the order of meeting.
        names: their qualified names.
    """

    def __init__(self, what: str, *, home: frozenset[str], stop_at: tuple[type, ...]) -> None:
        self.parts: list[str] = []
        self.names: set[str] = set()
        self._what = what
        self._whose = Ownership(home)
        self._stop_at = stop_at
        # By id, with the object itself so that no id is used twice.
        self._met: dict[int, object] = {}

    # Leaves and containers

    def value(self, value: Any, where: str) -> str:
        """The text of any value; refuses what has none."""
        if isinstance(value, enum.Enum):
            return f"{self.value(type(value), where)}.{value.name}"
        if isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, (tuple, list)):
            inner = ", ".join(self.value(item, where) for item in value)
            return f"{type(value).__name__} [{inner}]"
        if isinstance(value, (set, frozenset)):
            return f"set {sorted(self.value(item, where) for item in value)}"
        if isinstance(value, Mapping):
            pairs = (f"{self.value(key, where)}: {self.value(item, where)}" for key, item in value.items())
            return f"map {sorted(pairs)}"
        return self._code(value, where) or self._object(value, where)

    def _code(self, value: Any, where: str) -> str | None:
        if isinstance(value, FunctionType):
            return self._function(value, where)
        if isinstance(value, _SPELLED):
            return f"{type(value).__name__} {value}"
        if isinstance(value, type):
            return self._class(value, where)
        if isinstance(value, MethodType):
            return f"{self.value(value.__func__, where)} of {self.value(value.__self__, where)}"
        if isinstance(value, BuiltinFunctionType):
            return f"builtin {value.__module__}.{value.__qualname__}"
        if isinstance(value, ModuleType):
            return self._module(value, where)
        if isinstance(value, functools.partial):
            return f"partial {self.value((value.func, value.args, value.keywords), where)}"
        if isinstance(wrapped := getattr(value, "__wrapped__", None), FunctionType):
            return f"{_qualified(type(value))} of {self.value(wrapped, where)}"
        return None

    def _object(self, value: Any, where: str) -> str:
        kind = type(value)
        if isinstance(value, _NAMED_ONLY):
            return f"{_qualified(kind)} {getattr(value, 'name', '')}"
        if dataclasses.is_dataclass(value):
            return self._instance(value, where)
        if isinstance(value, PurePath):
            return f"path {value.as_posix()}"
        spelled = repr(value)
        if self._whose.owns(kind.__module__) or isinstance(value, torch.Tensor) or _ADDRESS.search(spelled):
            self._refuse(where, f"a live {kind.__qualname__}")
        return f"{_qualified(kind)} {spelled}"

    def _instance(self, value: Any, where: str) -> str:
        kind = self.value(type(value), where)
        if id(value) in self._met:
            return kind
        self._met[id(value)] = value
        names = [field.name for field in dataclasses.fields(value)]
        names += sorted(set(getattr(value, "__dict__", ())) - set(names))
        fields = [f"{name}={self.value(getattr(value, name), f'{where}.{name}')}" for name in names]
        return f"{kind}({', '.join(fields)})"

    # Code

    def _function(self, function: FunctionType, where: str) -> str:
        written_in = function.__globals__.get("__name__", "")
        if not self._whose.owns(written_in):
            wrapped = getattr(function, "__wrapped__", None)
            inner = self.value(wrapped, where) if wrapped is not None else ""
            return f"{self._whose.name_of(written_in)} {function.__code__.co_qualname} {inner}"
        if function.__name__ == "<lambda>":
            self._refuse(where, "a lambda")
        if "<locals>" in function.__qualname__:
            self._refuse(where, f"the local function {function.__qualname__}")
        return self._function_text(function, where)

    def _function_text(self, function: FunctionType, where: str) -> str:
        text = f"function {function.__qualname__}"
        if id(function) in self._met:
            return text
        self._met[id(function)] = function
        self.names.add(_qualified(function))
        place = len(self.parts)
        self.parts.append("")
        body = [
            self._source(function.__code__, where),
            self.value((function.__defaults__, function.__kwdefaults__), where),
            *(f"{name}={text}" for name, text in self._closure(function, where)),
        ]
        for name, value in sorted(references(function, self._whose.enters).items()):
            # Of the user's modules, what is taken out of them was followed, and they count by name.
            followed = isinstance(value, ModuleType) and self._whose.enters(value)
            body.append(name if followed else f"{name}: {self.value(value, f'{where} -> {name}')}")
        self.parts[place] = "\n".join([text, *body])
        return text

    def _closure(self, function: FunctionType, where: str) -> Iterator[tuple[str, str]]:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            # What `super()` needs: the class that is being walked.
            if name != "__class__":
                yield name, self.value(cell.cell_contents, f"{where} -> {name}")

    def _class(self, cls: type, where: str) -> str:
        if cls in self._stop_at or not self._whose.owns(cls.__module__):
            return f"{self._whose.name_of(cls.__module__)} {cls.__qualname__}"
        text = f"class {cls.__qualname__}"
        if id(cls) in self._met:
            return text
        self._met[id(cls)] = cls
        self.names.add(_qualified(cls))
        place = len(self.parts)
        self.parts.append("")
        bases = [self.value(base, where) for base in cls.__mro__[1:]]
        members = [
            f"{name}: {self._member(value, f'{cls.__qualname__}.{name}')}"
            for name, value in sorted(vars(cls).items())
            if _is_own(name, value)
        ]
        self.parts[place] = "\n".join([text, self._source(cls, where), *bases, *members])
        return text

    def _member(self, value: Any, where: str) -> str:
        if isinstance(value, (staticmethod, classmethod)):
            return self.value(value.__func__, where)
        if isinstance(value, property):
            return ", ".join(self.value(part, where) for part in (value.fget, value.fset, value.fdel))
        if isinstance(value, functools.cached_property):
            return self.value(value.func, where)
        if isinstance(value, FunctionType):
            # A method of a local class is local too, but its class and its closure are walked.
            return self._function_text(value, where) if self._is_here(value) else self._function(value, where)
        return self.value(value, where)

    def _is_here(self, function: FunctionType) -> bool:
        return self._whose.owns(function.__globals__.get("__name__", "")) and function.__name__ != "<lambda>"

    def _module(self, module: ModuleType, where: str) -> str:
        if not self._whose.enters(module):
            return self._whose.name_of(module.__name__)
        return f"module {self._source(module, where)}"

    def _source(self, code: CodeType | type | ModuleType, where: str) -> str:
        try:
            return _source_text(code)
        except (OSError, TypeError):
            self._refuse(where, "code whose source is not at hand")

    def _refuse(self, where: str, got: str) -> NoReturn:
        raise FingerprintError(
            f"{self._what} has no identity that holds in another process",
            expected="functions and classes written at the top of a module, and plain values",
            got=f"{got} (at {where})",
            hint="move it to the top of a module, make it a field of the pass, or override uuid()",
        )


@functools.lru_cache(maxsize=4096)
def _source_text(code: CodeType | type | ModuleType) -> str:
    # Remembered because finding it takes most of the time, and because code that is running was made from
    # what its file held earlier, not from what an editor saves later.
    return inspect.getsource(code)


def _is_own(name: str, value: object) -> bool:
    """Whether a class attribute was written by hand and may decide what the class does."""
    if name in _MACHINERY:
        return False
    if isinstance(value, (FunctionType, staticmethod, classmethod)):
        function: Any = value if isinstance(value, FunctionType) else value.__func__
        code = getattr(inspect.unwrap(function), "__code__", None)
        # dataclass, NamedTuple and the like make methods from strings; the class's source covers them.
        return code is None or not code.co_filename.startswith("<string>")
    if name.startswith("__") or (name.startswith("_") and name.endswith("_")):
        return False
    return isinstance(value, (property, functools.cached_property)) or not hasattr(type(value), "__set__")
