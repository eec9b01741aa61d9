"""Identity of code: where a function or class can be imported from, and what its code says.

What belongs to torch or to the standard library is named only: its version is in every cache key. Any
other function is named and its bytecode hashed, with its defaults, closure and the globals it reads;
any other class is named and the source of its whole hierarchy hashed.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any, Protocol

from torch_piecewise.errors import FingerprintError

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class Writer(Protocol):
    """Writes what code refers to; see :class:`~torch_piecewise.fingerprint.values.ValueWriter`."""

    def text(self, value: object) -> str:
        """Canonical text of a value."""

    def code(self, function: FunctionType) -> str:
        """Short canonical text of what a function does, whatever it is called."""


def digest(text: str) -> str:
    """The first 128 bits of SHA-256 in hex: short enough to read beside a name."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_versioned(module: str) -> bool:
    """Whether a module's code is told by the versions of torch and Python alone."""
    root = module.partition(".")[0]
    return root in ("torch", "functorch") or root in sys.stdlib_module_names


def import_path(value: Any) -> str | None:
    """The dotted path under which importing gives this very object; None where there is none."""
    for module, name in _spellings(value):
        path = f"{module}.{name}"
        if _PATH.fullmatch(path) and _found(module, name) is value:
            return path
    return None


def _spellings(value: Any) -> Iterator[tuple[str, str]]:
    names = [getattr(value, attribute, None) for attribute in ("__qualname__", "__name__")]
    module = getattr(value, "__module__", None)
    owner = getattr(value, "__objclass__", None)
    for name in names:
        if isinstance(name, str) and isinstance(module, str):
            yield module, name
    if isinstance(owner, type) and isinstance(names[1], str):
        yield owner.__module__, f"{owner.__qualname__}.{names[1]}"


def _found(module: str, name: str) -> object:
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def function_path(function: Callable[..., object]) -> str:
    """The import path of a function.

    Raises:
        FingerprintError: it is a lambda, a local function, or not what its name says.
    """
    path = import_path(function)
    if path is not None:
        return path
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"
    raise FingerprintError(
        f"Function {name} has no stable identity",
        expected="a function that can be imported by its module and qualified name",
        got=_why_not_importable(name),
        hint="define it with `def` at the top level of a module, or register it as a custom op",
    )


def _why_not_importable(name: str) -> str:
    if "<lambda>" in name:
        return "a lambda"
    if "<locals>" in name:
        return "a function defined inside another function"
    return "a function that is not what its module has under that name"


def function_text(function: FunctionType, writer: Writer) -> str:
    """Name of a Python function, with a hash of its code unless it is torch's or Python's own.

    Raises:
        FingerprintError: it, or something it refers to, has no stable identity.
    """
    path = function_path(function)
    return path if _is_versioned_code(function, path) else f"{path}[{writer.code(function)}]"


def _is_versioned_code(function: FunctionType, path: str | None) -> bool:
    # A wrapper made by a decorator of torch has torch's globals and its user's name; one made with
    # functools.wraps around a function of torch has it the other way round.
    origin = function.__globals__.get("__name__")
    return path is not None and is_versioned(path) and isinstance(origin, str) and is_versioned(origin)


def builtin_text(function: Callable[..., object]) -> str:
    """Name of a function that has no Python code.

    Raises:
        FingerprintError: it cannot be imported, or nothing says which version of it this is.
    """
    path = function_path(function)
    if is_versioned(path):
        return path
    raise FingerprintError(
        f"Compiled function {path} has no stable identity",
        expected="Python code to hash, or a function of torch or of the standard library",
        got=type(function).__name__,
        hint="register it as a custom op (torch.library) and call that",
    )


def code_text(function: FunctionType, writer: Writer) -> str:
    """What a function does, without what it is called: code, defaults, closure, globals it reads."""
    path = import_path(function)
    if path is not None and _is_versioned_code(function, path):
        return path
    lines = [bytecode_text(function.__code__, writer)]
    lines.append(f"defaults {writer.text(function.__defaults__)} {writer.text(function.__kwdefaults__)}")
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        lines.append(f"cell {name} {_cell_text(cell, writer)}")
    for name in sorted(_globals_read(function.__code__)):
        if name in function.__globals__:
            lines.append(f"global {name} {_part_text(function.__globals__[name], writer)}")
    return "\n".join(lines)


def _cell_text(cell: Any, writer: Writer) -> str:
    try:
        content = cell.cell_contents
    except ValueError:
        return "<empty>"
    return _part_text(content, writer)


def _part_text(value: object, writer: Writer) -> str:
    # A function that is only reached through a named one needs no name of its own: what a decorator
    # wraps, for one, can no longer be imported.
    if isinstance(value, FunctionType) and import_path(value) is None:
        return f"<part {writer.code(value)}>"
    return writer.text(value)


def bytecode_text(code: CodeType, writer: Writer) -> str:
    """A code object without its line numbers and file names. Depends on the Python version."""
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    constants = [
        bytecode_text(constant, writer) if isinstance(constant, CodeType) else writer.text(constant)
        for constant in code.co_consts
    ]
    handlers = getattr(code, "co_exceptiontable", b"")
    return f"code({code.co_code.hex()} {handlers.hex()} {counts} {names} [{', '.join(constants)}])"


def _globals_read(code: CodeType) -> set[str]:
    names = {
        str(instruction.argval)
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _globals_read(constant)
    return names


def class_text(cls: type) -> str:
    """Name of a class, with a hash of the source of every class it inherits from.

    Classes of torch and of the standard library count by name.

    Raises:
        FingerprintError: the class cannot be imported by its name, or has no source.
    """
    path = import_path(cls)
    if path is None:
        raise FingerprintError(
            f"Class {cls.__module__}.{cls.__qualname__} has no stable identity",
            expected="a class that can be imported by its module and qualified name",
            hint="define it at the top level of a module",
        )
    if is_versioned(cls.__module__):
        return f"class {path}"
    return f"class {path}[source {digest(chr(10).join(_hierarchy(cls)))}]"


def _hierarchy(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        yield f"{base.__module__}.{base.__qualname__}"
        if not is_versioned(base.__module__):
            yield _source(base)


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError) as error:
        raise FingerprintError(
            f"Class {cls.__module__}.{cls.__qualname__} has no stable identity",
            expected="a class whose source can be read",
            got=str(error),
            hint="define it in a module that is a file",
        ) from error
