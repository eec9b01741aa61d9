"""What the code of a Python function says, whatever file and line it stands in."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import sys
from collections.abc import Collection, Iterable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

PYTHON = f"{sys.implementation.cache_tag}-{sys.flags.optimize}"
"""What has to be alike for code to be comparable: the interpreter, and what ``-O`` leaves out."""
_READ_CONSTANT = frozenset(dis.hasconst)
_HAS_DOCSTRING = 0x4000000 if sys.version_info >= (3, 14) else 0
_LONGEST_WAY = 1000


def code_parts(code: CodeType) -> Iterator[str]:
    """All that a code object does, in texts; not where it stands, no comments and no docstrings."""
    yield code.co_code.hex()
    flags = code.co_flags & ~_HAS_DOCSTRING
    yield repr((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, flags))
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars))
    yield getattr(code, "co_exceptiontable", b"").hex()
    for at, constant in enumerate(code.co_consts):
        if isinstance(constant, CodeType):
            yield "inner"
            yield from code_parts(constant)
        else:
            yield "None" if at == 0 and _is_docstring(code) else _constant(constant)


def _is_docstring(code: CodeType) -> bool:
    """Whether the first constant is a docstring that the code itself does not read."""
    first = code.co_consts[0]
    is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
    if not isinstance(first, str) or not is_function or (_HAS_DOCSTRING & ~code.co_flags):
        return False
    steps = zip(code.co_code[::2], code.co_code[1::2], strict=True)
    return not any(argument == 0 and step in _READ_CONSTANT for step, argument in steps)


def _constant(value: Any) -> str:
    """As ``repr``, with the members of sets in an order that every process has."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    return repr(value)


def code_tag(function: Any) -> str:
    """``<PYTHON> <digest>`` of a function and its decorators; empty where no code of them is the user's.

    Code of torch has none: its version is compared by itself. Plain defaults of parameters count.
    """
    texts = [text for one in _parts(function) for text in _texts(one)]
    return f"{PYTHON} {_short(texts)}" if texts else ""


def method_tags(kind: type, names: Collection[str]) -> dict[str, str]:
    """The tags of a class's methods of these names; those that it inherits and overrides as ``Base.name``."""
    found: dict[str, str] = {}
    for name, definer, member in _definitions(kind, names):
        if tag := code_tag(member):
            key = name if name not in found else f"{definer.__name__}.{name}"
            while key in found:
                key += "'"
            found[key] = tag
    return found


def names_called(kinds: Iterable[type], functions: Iterable[Any]) -> list[str]:
    """All names in the code that calls of objects of some classes may run.

    That is ``forward``, ``__call__``, and each method of any of the classes that one of them names.

    Args:
        functions: others that may be called.
    """
    classes = list(dict.fromkeys(kinds))
    names: set[str] = set()
    new = {"forward", "__call__"}.union(*map(_names_in, functions))
    while new:
        names |= new
        members = [member for kind in classes for _, _, member in _definitions(kind, new)]
        new = set().union(*map(_names_in, members)) - names
    return sorted(names)


def tags_differ(one: str, other: str) -> bool:
    """Whether two tags are of one version of Python, and of different code."""
    versions = {tag.partition(" ")[0] for tag in (one, other) if tag}
    return one != other and len(versions) == 1


def _definitions(kind: type, names: Collection[str]) -> Iterator[tuple[str, type, Any]]:
    for definer in kind.__mro__:
        table = vars(definer)
        for name in [name for name in table if name in names]:
            yield name, definer, table[name]


def _parts(member: Any) -> Iterator[Any]:
    """The user's functions that a call of ``member`` may run, as its decorators hold them, and partials."""
    waiting: list[Any] = [member]
    seen: dict[int, Any] = {}
    while waiting and len(seen) < _LONGEST_WAY:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, property):
            waiting.append(one.fget)
        elif isinstance(one, MethodType | staticmethod | classmethod):
            waiting.append(one.__func__)
        elif isinstance(one, functools.partial | functools.partialmethod):
            yield one
            waiting.append(one.func)
        elif isinstance(one, functools.cached_property):
            waiting.append(one.func)
        elif isinstance(one, FunctionType) and not _is_torchs(one):
            yield one
            waiting += _closed_over(one)
        waiting += _wrapped(one)


def _is_torchs(function: FunctionType) -> bool:
    """By where it was written: ``functools.wraps`` copies ``__module__``."""
    return str(function.__globals__.get("__name__")).partition(".")[0] == "torch"


def _closed_over(function: FunctionType) -> Iterator[FunctionType]:
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # not set yet
            continue
        if isinstance(value, FunctionType):
            yield value


def _wrapped(value: Any) -> Iterator[Any]:
    """What ``value`` says it wraps; not what a ``__getattr__`` would answer."""
    if inspect.getattr_static(value, "__wrapped__", None) is None:
        return
    try:
        wrapped = value.__wrapped__
    except Exception:  # noqa: BLE001 - a proxy's own code
        return
    if callable(wrapped):
        yield wrapped


def _texts(part: Any) -> Iterator[str]:
    if isinstance(part, FunctionType):
        yield _digest(part.__code__)
        yield _plain(part.__defaults__ or ())
        yield _plain(sorted((part.__kwdefaults__ or {}).items()))
    else:
        yield _plain(part.args)
        yield _plain(sorted(part.keywords.items()))


def _plain(value: Any) -> str:
    """A value where it is a number, a text or such; else nothing."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_plain, value))})"
    return repr(value) if type(value) in (bool, int, float, complex, str, type(None)) else "?"


def _names_in(member: Any) -> set[str]:
    codes = [part.__code__ for part in _parts(member) if isinstance(part, FunctionType)]
    return {name for code in codes for name in _names(code)}


def _names(code: CodeType) -> Iterator[str]:
    """The attributes that code asks for, and whatever else it finds by name."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


@functools.cache
def _digest(code: CodeType) -> str:
    return _short(code_parts(code))


def _short(texts: Iterable[str]) -> str:
    found = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        found.update(b"%d:" % len(data))
        found.update(data)
    return found.hexdigest()[:16]
