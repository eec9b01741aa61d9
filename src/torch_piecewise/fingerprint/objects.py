"""Canonical text of objects that are neither scalars nor builtin containers.

Ops, enums, NumPy values, dataclasses, and what describes itself by ``__reduce__``.
"""

from __future__ import annotations

import copyreg
import dataclasses
from collections.abc import Mapping
from enum import Enum
from types import MethodType
from typing import Any

from torch_piecewise.errors import FingerprintError
from torch_piecewise.fingerprint.code import Writer, digest, import_path
from torch_piecewise.torch_private.ops import (
    is_dispatcher_op,
    is_higher_order,
    is_packet,
    op_name,
    op_schemas,
)

TORCH_NAMESPACES = frozenset({"aten", "prims", "prim", "quantized"})
"""Op namespaces whose schemas torch's version tells."""


def object_text(writer: Writer, value: object) -> str:
    """Canonical text of an object.

    Raises:
        FingerprintError: nothing says which object it is.
    """
    if is_dispatcher_op(value):
        return op_text(writer, value)
    if _is_pybind_enum(value):
        return _pybind_enum(value)
    if _is_numpy(value):
        return _numpy(value)
    if dataclasses.is_dataclass(value):
        return _dataclass(writer, value)
    return reduced_text(writer, value)


def op_text(writer: Writer, op: object) -> str:
    """Name of an op; with its schema, which tells what it mutates, unless torch's version tells that."""
    name = op_name(op)
    if is_higher_order(op):
        return f"hop {name} {writer.text(type(op))}"
    kind = "packet" if is_packet(op) else "op"
    if name.partition("::")[0] in TORCH_NAMESPACES:
        return f"{kind} {name}"
    return f"{kind} {'; '.join(map(ascii, op_schemas(op) or ()))}"


def enum_text(writer: Writer, value: Enum) -> str:
    """Class, name and value: a composite flag has no name of its own."""
    return f"{path_or_refuse(type(value))}.{value.name}={writer.text(value.value)}"


def method_text(writer: Writer, value: MethodType) -> str:
    """A bound method, by its name and the object it is bound to."""
    name = value.__name__
    if getattr(value.__self__, name, None) != value:
        raise unnamed(value, f"a bound method that is not its object's {name!r}")
    return f"method {name} of {writer.text(value.__self__)}"


def _is_pybind_enum(value: object) -> bool:
    members = getattr(type(value), "__members__", None)
    return isinstance(members, Mapping) and getattr(value, "name", None) in members


def _pybind_enum(value: Any) -> str:
    return f"{path_or_refuse(type(value))}.{value.name}={int(value)}"


def _is_numpy(value: object) -> bool:
    # By name, because torch runs without NumPy, and so does this.
    return type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "tobytes")


def _numpy(value: Any) -> str:
    if value.dtype.hasobject:
        raise unnamed(value, "a NumPy value that holds Python objects")
    shape = f"shape={value.shape} strides={value.strides}"
    return f"numpy {type(value).__name__} {value.dtype.descr} {shape} bytes {digest(value.tobytes().hex())}"


def _dataclass(writer: Writer, value: Any) -> str:
    names = {field.name for field in dataclasses.fields(value)} | set(getattr(value, "__dict__", ()))
    fields = [f"{name}={writer.text(getattr(value, name))}" for name in sorted(names) if hasattr(value, name)]
    return f"{writer.text(type(value))}({', '.join(fields)})"


def reduced_text(writer: Writer, value: Any) -> str:
    """The text of what an object's own ``__reduce__`` says: how to make it, and its state.

    Raises:
        FingerprintError: its class does not say how to reduce it, or it cannot be reduced.
    """
    if not _reduces_itself(type(value)):
        raise unnamed(value, f"{type(value).__module__}.{type(value).__qualname__}")
    try:
        parts = value.__reduce_ex__(4)
    except Exception as error:
        raise unnamed(value, f"{type(value).__qualname__}, which cannot be pickled: {error}") from error
    if not isinstance(parts, tuple):
        raise unnamed(value, f"{type(value).__qualname__}, which reduces to the bare name {parts!r}")
    made, arguments, *rest = parts
    state, elements, entries = (*rest, None, None, None)[:3]
    told = (type(value), made, arguments, state, list(elements or ()), list(entries or ()))
    return f"object({', '.join(map(writer.text, told))})"


def _reduces_itself(kind: type) -> bool:
    # object itself, the last base, reduces anything that pickle can guess at.
    own = [{"__reduce__", "__reduce_ex__"} & vars(base).keys() for base in kind.__mro__[:-1]]
    return any(own) or kind in copyreg.dispatch_table


def path_or_refuse(cls: type) -> str:
    """The import path of a class that counts by name.

    Raises:
        FingerprintError: it has none.
    """
    path = import_path(cls)
    if path is None:
        raise unnamed(cls, f"class {cls.__module__}.{cls.__qualname__}, which cannot be imported")
    return path


def unnamed(value: object, got: str) -> FingerprintError:
    """The error for a value that nothing identifies."""
    return FingerprintError(
        f"A value of type {type(value).__qualname__} has no stable identity",
        expected="a constant, a container, an importable function or class, a dataclass, an enum, or an "
        "object that defines __reduce__",
        got=got,
        hint="pass it to the piece as an input, or make it one of these",
    )
