"""Plain values as texts: numbers, strings, enums, dtypes, tensors but for their contents, and containers."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import logging
import math
import pathlib
import re
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_piecewise.cache_key.base import PythonValue, Scalar, short_digest
from torch_piecewise.cache_key.code import name_of

LONGEST_TEXT = 1000
"""Characters; longer texts go by their hash."""

_DEEPEST_TEXT = 8
_CONVERSIONS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    # Not by calling the class: a subclass may say something else there.
    (int, int.__int__),
    (float, float.__float__),
    (str, str.__str__),
    (bytes, bytes.__bytes__),
)
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
    dt.date,
    dt.time,
    dt.timedelta,
    pathlib.PurePath,
    re.Pattern,
)
OPAQUE = "opaque"
"""How the text of a value begins whose state cannot be seen."""


def worth_of(value: PythonValue) -> Scalar:
    """What an object of a subclass of int, float, str or bytes is worth as one of these; else None."""
    for base, convert in _CONVERSIONS:
        if isinstance(value, base):
            return plain_value(convert(value))[0]
    return None


def tensor_text(tensor: torch.Tensor) -> str:
    """All about a tensor that code compiled for it relies on, but its values and its address."""
    kind = "" if type(tensor) in (torch.Tensor, nn.Parameter) else f"{name_of(type(tensor))} "
    if is_lazy(tensor):
        return f"{kind}{_short(tensor.dtype)} uninitialized {tensor.device.type}"
    stride = f"stride {list(tensor.stride())}" if tensor.layout == torch.strided else _short(tensor.layout)
    grad = " requires_grad" if tensor.requires_grad else ""
    return f"{kind}{_short(tensor.dtype)} {list(tensor.shape)} {stride} {tensor.device.type}{grad}"


def _short(thing: PythonValue) -> str:
    return str(thing).removeprefix("torch.")


def plain_value(value: PythonValue) -> tuple[Scalar, bool]:
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
            repr(value) if len(value) <= LONGEST_TEXT else f"str of {len(value)}: {short_digest(value)}"
        ), True
    if kind in (bytes, bytearray):
        return f"{kind.__name__} of {len(value)}: {short_digest(bytes(value))}", True
    text = _plain_object(value)
    return text, text is not None


def _plain_object(value: PythonValue) -> str | None:
    if isinstance(value, enum.Enum):
        inner, is_plain = plain_value(value.value)
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


def _numpy_text(value: PythonValue) -> str | None:
    # By name, so that numpy need not be there.
    if type(value).__module__ != "numpy" or not hasattr(value, "dtype") or not hasattr(value, "tobytes"):
        return None
    shape = list(getattr(value, "shape", ()))
    content = repr(value.tolist()) if value.dtype == object or not shape else short_digest(value.tobytes())
    return f"numpy {value.dtype} {shape} {content if len(content) < LONGEST_TEXT else short_digest(content)}"


def flat_text(value: PythonValue, depth: int = 0) -> str | None:
    """A builtin container of plain values and such containers, as text; None if it holds anything else."""
    kind = type(value)
    # The depth also ends a list that holds itself.
    if kind not in (dict, list, tuple, set, frozenset) or depth > _DEEPEST_TEXT:
        return None
    if kind is dict:
        keys = [plain_or_flat(key, depth + 1) for key in value]
        items = [plain_or_flat(item, depth + 1) for item in value.values()]
        pairs = [f"{key}: {item}" for key, item in zip(keys, items, strict=True) if key and item]
        return "{" + ", ".join(pairs) + "}" if len(pairs) == len(value) else None
    items = [plain_or_flat(item, depth + 1) for item in value]
    texts = [item for item in items if item is not None]
    if len(texts) != len(items):
        return None
    if kind in (set, frozenset):
        return f"{kind.__name__}({', '.join(sorted(texts))})"
    left, right = "[]" if kind is list else "()"
    return f"{left}{', '.join(texts)}{',' if kind is tuple and len(texts) == 1 else ''}{right}"


def plain_or_flat(value: PythonValue, depth: int = 0) -> str | None:
    """``value`` as one text, if it is a scalar or a flat container of scalars."""
    plain, is_plain = plain_value(value)
    return str(plain) if is_plain else flat_text(value, depth)


def member_text(value: PythonValue) -> str:
    """``value`` as a member of a set or an enum shows it: its text, else its class."""
    text = plain_or_flat(value)
    return f"{OPAQUE} {name_of(type(value))}" if text is None else text
