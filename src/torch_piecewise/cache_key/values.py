"""Python values as ingredients: exact where plain, by class and state where not, and named where opaque."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import functools
import logging
import math
import pathlib
import re
import types
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_piecewise.cache_key.base import Ingredient, Scalar, short_digest
from torch_piecewise.cache_key.code import code_digest, goes_by_name, name_of
from torch_piecewise.torch_private_store import operator_name

Value = Scalar | tuple[Ingredient, ...]

_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.MethodDescriptorType,
)
_LONGEST_TEXT = 1000
_DEEPEST = 40
_LARGEST_INT = 1 << 256
_BY_REPR = (
    complex,
    range,
    slice,
    type(Ellipsis),
    torch.dtype,
    torch.layout,
    torch.memory_format,
    torch.Size,
    decimal.Decimal,
    fractions.Fraction,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    pathlib.PurePath,
    re.Pattern,
)
OPAQUE = "opaque"
"""How the text of a value begins whose state cannot be seen."""


class Describer:
    """Describes values; remembers what it has seen, so that shared and cyclic objects are named once.

    Args:
        ignore: attribute names that only label and never count.
    """

    def __init__(self, ignore: Collection[str] = ()) -> None:
        self._ignore = frozenset(ignore)
        self._paths: dict[int, str] = {}
        self._keep: list[Any] = []
        self.classes: dict[type, None] = {}

    def first_path(self, thing: object, path: str) -> str | None:
        """Where ``thing`` was met before; None the first time, which is remembered as ``path``."""
        known = self._paths.get(id(thing))
        if known is None:
            self._paths[id(thing)] = path
            # An id is only good while its object lives.
            self._keep.append(thing)
        return known

    def attributes(self, values: dict[str, Any], path: str, depth: int = 0) -> tuple[Ingredient, ...]:
        """Each attribute as an ingredient, by name."""
        return tuple(
            Ingredient(name, self.value(values[name], f"{path}.{name}", depth))
            for name in sorted(values)
            if name not in self._ignore
        )

    def value(self, value: object, path: str, depth: int = 0) -> Value:
        """``value`` as it goes into a key.

        Strings are in quotes, so that none can be taken for another kind of value.
        """
        if depth > _DEEPEST:
            return f"{OPAQUE} {name_of(type(value))}: nested too deep"
        plain, is_plain = _plain(value)
        if is_plain:
            return plain
        if isinstance(value, dict | list | tuple | set | frozenset | collections.deque):
            return self._container(value, path, depth)
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path, depth)
        if callable(value) and not isinstance(value, nn.Module):
            return self._callable(value, path, depth)
        return self._object(value, path, depth)

    def _container(self, value: object, path: str, depth: int) -> Value:
        kind = name_of(type(value))
        text = _flat_text(value)
        if text is not None:
            return text if len(text) <= _LONGEST_TEXT else f"{kind} of {len(value)}: {short_digest(text)}"
        known = self.first_path(value, path)
        if known is not None:
            return f"same as {known}"
        parts = [Ingredient("(class)", kind), *self._items(value, path, depth + 1)]
        own = getattr(value, "__dict__", None)
        if own:
            parts.append(Ingredient("(attributes)", self.attributes(own, path, depth + 1)))
        return tuple(parts)

    def _items(self, value: object, path: str, depth: int) -> Iterable[Ingredient]:
        if isinstance(value, dict):
            for number, (key, item) in enumerate(value.items()):
                plain, is_plain = _plain(key)
                name = f"[{plain}]" if is_plain else f"[key {number}, {name_of(type(key))}]"
                yield Ingredient(name, self.value(item, f"{path}{name}", depth))
        elif isinstance(value, set | frozenset):
            # Members without a text count by class and number: sets have no order to name them by.
            for name, count in sorted(collections.Counter(map(_member_text, value)).items()):
                yield Ingredient(f"[{name}]", count)
        else:
            for number, item in enumerate(value):
                yield Ingredient(f"[{number}]", self.value(item, f"{path}[{number}]", depth))

    def _tensor(self, value: torch.Tensor, path: str, depth: int) -> Value:
        known = self.first_path(value, path)
        if known is not None:
            return f"same tensor as {known}"
        flatten = getattr(value, "__tensor_flatten__", None)
        if flatten is None or type(value) in (torch.Tensor, nn.Parameter):
            return tensor_text(value)
        # A wrapper (quantised, distributed, ...): what it wraps, and what it says about it.
        names, context = flatten()
        inner = {name: getattr(value, name) for name in names}
        return (
            Ingredient("(tensor)", tensor_text(value)),
            Ingredient("(context)", self.value(context, f"{path}.(context)", depth + 1)),
            *self.attributes(inner, path, depth + 1),
        )

    def _callable(self, value: object, path: str, depth: int) -> Value:
        if isinstance(value, types.MethodType):
            owner = self.value(value.__self__, f"{path}.(self)", depth + 1)
            return (Ingredient("(method)", _named(value.__func__)), Ingredient("(self)", owner))
        if isinstance(value, functools.partial):
            bound = {"(arguments)": list(value.args), "(keywords)": dict(value.keywords)}
            function = self.value(value.func, f"{path}.(function)", depth + 1)
            return (Ingredient("(partial)", function), *self.attributes(bound, path, depth + 1))
        if isinstance(value, type):
            if not goes_by_name(value.__module__):
                self.classes.setdefault(value)
            return f"class {name_of(value)}"
        if isinstance(value, _FUNCTIONS):
            return _named(value)
        operator = operator_text(value)
        if operator is not None:
            return operator
        return self._object(value, path, depth)

    def _object(self, value: object, path: str, depth: int) -> Value:
        known = self.first_path(value, path)
        if known is not None:
            return f"same object as {known}"
        kind = type(value)
        if not goes_by_name(kind.__module__):
            self.classes.setdefault(kind)
        state = _state(value)
        if state is None:
            return f"{OPAQUE} {name_of(kind)}"
        return (Ingredient("(class)", name_of(kind)), *self.attributes(state, path, depth + 1))


def _state(value: object) -> dict[str, Any] | None:
    """The attributes of an object; None where they cannot be seen (written in C)."""
    state: dict[str, Any] = {}
    seen = False
    for base in reversed(type(value).__mro__):
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            seen = True
            private = slot.startswith("__") and not slot.endswith("__")
            name = f"_{base.__name__.lstrip('_')}{slot}" if private else slot
            if isinstance(vars(base).get(name), types.MemberDescriptorType) and hasattr(value, name):
                state[name] = getattr(value, name)
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict):
        state.update({str(name): item for name, item in own.items()})
        seen = True
    # With an object of a base written in C, an empty __dict__ says nothing.
    if not seen or (not state and goes_by_name(type(value).__module__)):
        return None
    return state


def operator_text(value: object) -> str | None:
    """The text of an operator of the dispatcher, with the body of a Python one; None for all else."""
    named = operator_name(value)
    if named is None:
        return None
    name, body = named
    return f"operator {name}" if body is None else f"operator {name} {code_digest(body)}"


def _named(function: object) -> str:
    if isinstance(function, types.FunctionType) and not goes_by_name(function.__module__):
        return f"function {name_of(function)} {code_digest(function)}"
    return f"function {name_of(function)}"


def tensor_text(tensor: torch.Tensor) -> str:
    """All about a tensor that code compiled for it relies on, but its values and its address."""
    kind = "" if type(tensor) in (torch.Tensor, nn.Parameter) else f"{name_of(type(tensor))} "
    if is_lazy(tensor):
        return f"{kind}{_short(tensor.dtype)} uninitialized {tensor.device.type}"
    stride = f"stride {list(tensor.stride())}" if tensor.layout == torch.strided else _short(tensor.layout)
    grad = " requires_grad" if tensor.requires_grad else ""
    return f"{kind}{_short(tensor.dtype)} {list(tensor.shape)} {stride} {tensor.device.type}{grad}"


def _short(thing: object) -> str:
    return str(thing).removeprefix("torch.")


def _plain(value: object) -> tuple[Scalar, bool]:
    """The scalar that stands for ``value``, and whether there is one."""
    kind = type(value)
    if value is None or kind is bool:
        return value, True
    if kind is int:
        return (value if -_LARGEST_INT < value < _LARGEST_INT else f"int {short_digest(hex(value))}"), True
    if kind is float:
        return (value if math.isfinite(value) else repr(value)), True
    if kind is str:
        return (
            repr(value) if len(value) <= _LONGEST_TEXT else f"str of {len(value)}: {short_digest(value)}"
        ), True
    if kind in (bytes, bytearray):
        return f"{kind.__name__} of {len(value)}: {short_digest(bytes(value))}", True
    text = _plain_object(value)
    return text, text is not None


def _plain_object(value: object) -> str | None:
    if isinstance(value, enum.Enum):
        inner, is_plain = _plain(value.value)
        return f"{name_of(type(value))}.{value.name}" + (f" = {inner}" if is_plain else "")
    if isinstance(value, torch.device):
        return f"device {value}"
    if isinstance(value, _BY_REPR):
        return repr(value)
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, logging.Logger):
        return f"logger {value.name}"
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return f"symbolic {value}"
    return _numpy_text(value)


def _numpy_text(value: object) -> str | None:
    # By name, so that numpy need not be there.
    if type(value).__module__ != "numpy" or not hasattr(value, "dtype") or not hasattr(value, "tobytes"):
        return None
    shape = list(getattr(value, "shape", ()))
    content = repr(value.tolist()) if value.dtype == object or not shape else short_digest(value.tobytes())
    return f"numpy {value.dtype} {shape} {content if len(content) < _LONGEST_TEXT else short_digest(content)}"


def _flat_text(value: object) -> str | None:
    """A builtin container of plain values, as text; None if it holds anything else."""
    kind = type(value)
    if kind is dict:
        pairs = [(_plain(key), _plain_or_flat(item)) for key, item in value.items()]
        if all(key[1] and item is not None for key, item in pairs):
            return "{" + ", ".join(f"{key[0]}: {item}" for key, item in pairs) + "}"
        return None
    if kind not in (list, tuple, set, frozenset):
        return None
    items = [_plain_or_flat(item) for item in value]
    texts = [item for item in items if item is not None]
    if len(texts) != len(items):
        return None
    if kind in (set, frozenset):
        return f"{kind.__name__}({', '.join(sorted(texts))})"
    left, right = "[]" if kind is list else "()"
    return f"{left}{', '.join(texts)}{',' if kind is tuple and len(texts) == 1 else ''}{right}"


def _plain_or_flat(value: object) -> str | None:
    plain, is_plain = _plain(value)
    if is_plain:
        return repr(plain) if isinstance(plain, float) else str(plain)
    # One level deeper only: more would recurse without end into a list that holds itself.
    if type(value) is tuple and all(_plain(item)[1] for item in value):
        return _flat_text(value)
    return None


def _member_text(value: object) -> str:
    text = _plain_or_flat(value)
    return f"{OPAQUE} {name_of(type(value))}" if text is None else text
