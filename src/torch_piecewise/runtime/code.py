"""What the code of a Python function says, whatever file and line it stands in."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Iterator
from types import CodeType, MethodType
from typing import Any

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def code_parts(code: CodeType) -> Iterator[str]:
    """All that a code object does, in texts; not where it stands, and no comments."""
    yield code.co_code.hex()
    yield repr((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags))
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars))
    yield getattr(code, "co_exceptiontable", b"").hex()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield "inner"
            yield from code_parts(constant)
        else:
            yield _constant(constant)


def _constant(value: Any) -> str:
    """As ``repr``, with the members of sets in an order that every process has."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    return repr(value)


def code_tag(function: Any) -> str:
    """``<Python version> <digest>`` of a function's code, below its decorators; empty where it has none.

    Code of torch has none: its version is compared by itself. Tags of different versions of Python say
    nothing about each other.
    """
    code = _code(function)
    return "" if code is None else f"{_PYTHON} {_digest(code)}"


def method_tags(kind: type) -> dict[str, str]:
    """The tags of ``forward`` and of all methods that it may call: those that it, or one of them, names."""
    found: dict[str, str] = {}
    waiting = ["forward"]
    while waiting:
        name = waiting.pop()
        member = inspect.getattr_static(kind, name, None)
        code = _code(member.fget if isinstance(member, property) else member)
        if name not in found and code is not None:
            found[name] = f"{_PYTHON} {_digest(code)}"
            waiting += _names(code)
    return found


def tags_differ(one: str, other: str) -> bool:
    """Whether two tags are of one version of Python, and of different code."""
    versions = {tag.partition(" ")[0] for tag in (one, other) if tag}
    return one != other and len(versions) == 1


def _code(function: Any) -> CodeType | None:
    wrappers = (MethodType, staticmethod, classmethod)
    while isinstance(function, wrappers) or hasattr(function, "__wrapped__"):
        function = getattr(function, "__wrapped__", None) or function.__func__
    code = getattr(function, "__code__", None)
    is_torchs = (getattr(function, "__module__", None) or "").partition(".")[0] == "torch"
    return code if isinstance(code, CodeType) and not is_torchs else None


def _names(code: CodeType) -> Iterator[str]:
    """The attributes that code asks for, and whatever else it finds by name."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


@functools.cache
def _digest(code: CodeType) -> str:
    found = hashlib.sha256()
    for part in code_parts(code):
        data = part.encode("utf-8", "surrogatepass")
        found.update(b"%d:" % len(data))
        found.update(data)
    return found.hexdigest()[:16]
