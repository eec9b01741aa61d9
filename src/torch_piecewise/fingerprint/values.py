"""Canonical text of values: equal texts only where the values mean the same, in any process.

No hash seed, address, or order of a dict's or set's insertions shows in a text. Types show: ``1``,
``1.0``, ``True``, ``'1'``, ``(1,)`` and ``[1]`` differ, and so do ``0.0`` and ``-0.0``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import (
    BuiltinFunctionType,
    FunctionType,
    GetSetDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import torch

from torch_piecewise.fingerprint.code import builtin_text, class_text, code_text, digest, function_text
from torch_piecewise.fingerprint.objects import (
    enum_text,
    method_text,
    object_text,
    path_or_refuse,
    reduced_text,
    unnamed,
)
from torch_piecewise.fingerprint.tensors import content_hash

Special = Callable[[object], str | None]
"""Writes the values that mean something only where they stand (nodes, devices); None for all others."""


def stable_text(value: object) -> str:
    """Canonical one-line text of a value, the same in every process.

    Takes None, bools, numbers, strings, bytes, containers (nested), slices, ranges, enums, dataclasses,
    named tuples, torch dtypes, devices, layouts, memory formats, ops, dense tensors (by content), NumPy
    scalars and arrays, modules (by name), classes and functions that can be imported, bound methods,
    ``functools.partial``, and any object whose class defines ``__reduce__``. A dict is written in the
    order of its keys' texts, a set in that of its elements'. Functions count with a hash of their
    bytecode, classes with a hash of their source; torch's and Python's own count by name.

    Raises:
        FingerprintError: it, or something inside it, has no stable identity: a lambda, a local function
            or class, an object that does not reduce itself, a symbolic size, a container in itself.
    """
    return ValueWriter().text(value)


class ValueWriter:
    """Writes values as canonical text.

    Args:
        special: asked first about every value, nested ones too.
    """

    def __init__(self, special: Special | None = None) -> None:
        self._special = special
        self._open: list[object] = []
        self._classes: dict[type, str] = {}
        # Functions are kept with what was found, so that no other can take their id.
        self._codes: dict[int, tuple[FunctionType, str]] = {}
        self._reached: dict[int, tuple[int, FunctionType]] | None = None

    def text(self, value: object) -> str:
        """Canonical text of ``value``; see :func:`stable_text`."""
        if self._special is not None:
            written = self._special(value)
            if written is not None:
                return written
        simple = _SIMPLE.get(type(value))
        if simple is not None:
            return simple(value)
        if isinstance(value, FunctionType):
            return function_text(value, self)
        if any(value is outer for outer in self._open):
            raise unnamed(value, "a value that contains itself")
        self._open.append(value)
        try:
            return self._compound(value)
        finally:
            self._open.pop()

    def code(self, function: FunctionType) -> str:
        """What ``function`` does, whatever it is called: a hash over it and all that it reaches.

        While that hash is being made, the number of ``function`` among what it covers.
        """
        if self._reached is not None:
            number = self._reached.setdefault(id(function), (len(self._reached), function))[0]
            return f"code#{number}"
        if id(function) not in self._codes:
            self._codes[id(function)] = (function, digest(self._reachable_code(function)))
        return f"code {self._codes[id(function)][1]}"

    def _reachable_code(self, function: FunctionType) -> str:
        # Each function is written once, so that recursion ends and shared helpers cost once.
        outer, self._open = self._open, []
        self._reached = reached = {id(function): (0, function)}
        texts: list[str] = []
        try:
            while len(texts) < len(reached):
                texts.append(code_text(list(reached.values())[len(texts)][1], self))
        finally:
            self._open, self._reached = outer, None
        return "\n".join(texts)

    def items(self, values: Iterable[object]) -> str:
        """The texts of ``values`` in order, with commas between."""
        return ", ".join([self.text(value) for value in values])

    def class_(self, cls: type) -> str:
        """Name of a class, with a hash of its source unless it is torch's or Python's own."""
        # Reading a class's source parses its whole file.
        if cls not in self._classes:
            self._classes[cls] = class_text(cls)
        return self._classes[cls]

    def _compound(self, value: Any) -> str:
        for kind, write in _KINDS:
            if isinstance(value, kind):
                return write(self, value)
        return object_text(self, value)


def _float(value: float) -> str:
    # repr hides the sign and payload of a nan, and torch.copysign shows the sign.
    return repr(value) if not math.isnan(value) else f"nan:{struct.pack('>d', value).hex()}"


def _complex(value: complex) -> str:
    return f"complex({_float(value.real)}, {_float(value.imag)})"


def _device(device: torch.device) -> str:
    return f"device({device})"


# ascii() for strings: what repr() escapes depends on the Unicode tables of the Python version.
_SIMPLE: Mapping[type, Callable[[Any], str]] = {
    type(None): str,
    bool: str,
    int: str,
    float: _float,
    complex: _complex,
    str: ascii,
    bytes: ascii,
    type(...): str,
    type(NotImplemented): str,
    torch.dtype: str,
    torch.layout: str,
    torch.memory_format: str,
    torch.qscheme: str,
    torch.device: _device,
}


def is_plain(value: object, kind: type) -> bool:
    """Whether ``value`` is exactly a ``kind``, or torch.fx's immutable form of one."""
    return type(value) is kind or (
        isinstance(value, kind) and type(value).__module__ == "torch.fx.immutable_collections"
    )


def _tuple(writer: ValueWriter, value: tuple[object, ...]) -> str:
    if type(value) is tuple:
        return f"({writer.items(value)}{',' if len(value) == 1 else ''})"
    if isinstance(value, torch.Size):
        return f"torch.Size({writer.items(value)})"
    names = getattr(type(value), "_fields", None)
    if not isinstance(names, tuple) or len(names) != len(value):
        return reduced_text(writer, value)
    # What collections.namedtuple makes has no source to read; its fields say all of it.
    fields = [f"{name}={writer.text(item)}" for name, item in zip(names, value, strict=True)]
    return f"{path_or_refuse(type(value))}({', '.join(fields)})"


def _list(writer: ValueWriter, value: list[object]) -> str:
    return f"[{writer.items(value)}]" if is_plain(value, list) else reduced_text(writer, value)


def _dict(writer: ValueWriter, value: dict[object, object]) -> str:
    if not is_plain(value, dict):
        return reduced_text(writer, value)
    entries = sorted(f"{writer.text(key)}: {writer.text(item)}" for key, item in value.items())
    return f"{{{', '.join(entries)}}}"


def _set(writer: ValueWriter, value: set[object] | frozenset[object]) -> str:
    if type(value) not in (set, frozenset):
        return reduced_text(writer, value)
    return f"{type(value).__name__}({', '.join(sorted(map(writer.text, value)))})"


def _span(writer: ValueWriter, value: slice | range) -> str:
    return f"{type(value).__name__}({writer.items((value.start, value.stop, value.step))})"


def _builtin(writer: ValueWriter, value: Callable[..., object]) -> str:
    return builtin_text(value)


def _module(writer: ValueWriter, value: ModuleType) -> str:
    return f"module {value.__name__}"


def _tensor(writer: ValueWriter, value: torch.Tensor) -> str:
    content = content_hash(value)
    return (
        f"{type(value).__name__} {value.dtype} {writer.text(value.device)} size={tuple(value.size())} "
        f"stride={value.stride()} offset={value.storage_offset()} "
        f"requires_grad={value.requires_grad} sha256:{content}"
    )


def _live(writer: ValueWriter, value: object) -> str:
    raise unnamed(value, f"{type(value).__module__}.{type(value).__qualname__}")


# Asked in this order: an enum may be an int too, and a named tuple a dataclass.
_KINDS: tuple[tuple[type | tuple[type, ...], Callable[[ValueWriter, Any], str]], ...] = (
    (Enum, enum_text),
    (tuple, _tuple),
    (list, _list),
    (dict, _dict),
    ((set, frozenset), _set),
    ((slice, range), _span),
    ((BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType, GetSetDescriptorType), _builtin),
    (MethodType, method_text),
    (type, ValueWriter.class_),
    (ModuleType, _module),
    (torch.Tensor, _tensor),
    # Symbols without their piece; live objects, of which some reduce to a snapshot of their state.
    ((torch.SymInt, torch.SymFloat, torch.SymBool, torch.nn.Module), _live),
    ((torch.Generator, torch.Stream, torch.Event, torch.ScriptObject), _live),
)
