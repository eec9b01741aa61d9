"""Which global names a Python function uses, and what they stand for."""

from __future__ import annotations

import builtins
import dis
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType

_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_MISSING = object()


def references(function: FunctionType, enter: Callable[[ModuleType], bool]) -> dict[str, object]:
    """Dotted name -> object for every global that the function's code (and code nested in it) loads.

    ``helpers.fuse`` gives what ``fuse`` is where ``enter(helpers)`` allows looking into that module, and
    the module otherwise. Imports inside the function count. Builtins and unbound names do not.
    """
    found: dict[str, object] = {}
    for load in _loads(function.__code__):
        if load.level is None:
            _add_global(found, load.path, function, enter)
        else:
            _add_import(found, load, function, enter)
    return found


@dataclass(frozen=True)
class _Load:
    """A global name that code loads, with the attributes taken from it at once.

    Attributes:
        path: ``("helpers", "fuse")`` for ``helpers.fuse``; for an import, the module and the names from it.
        level: None for a global; for an import, how many packages up it starts, 0 if not relative.
    """

    path: tuple[str, ...]
    level: int | None = None


# A memo of a function of immutable code: disassembling is most of the work.
@functools.lru_cache(maxsize=4096)
def _loads(code: CodeType) -> tuple[_Load, ...]:
    loads: list[_Load] = []
    for inner in _codes(code):
        instructions = list(dis.get_instructions(inner))
        for index, instruction in enumerate(instructions):
            name, rest = str(instruction.argval), instructions[index + 1 :]
            if instruction.opname in _GLOBAL:
                loads.append(_Load((name, *_attributes(rest))))
            elif instruction.opname == "IMPORT_NAME":
                # The two instructions before it push the level and the list of names.
                level = instructions[index - 2].argval if index >= 2 else 0
                loads.append(_Load((name, *_imported(rest)), int(level or 0)))
    return tuple(loads)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _attributes(instructions: list[dis.Instruction]) -> Iterator[str]:
    for instruction in instructions:
        if instruction.opname not in _ATTRIBUTE:
            return
        yield str(instruction.argval)


def _add_global(
    found: dict[str, object],
    path: tuple[str, ...],
    function: FunctionType,
    enter: Callable[[ModuleType], bool],
) -> None:
    name, *attributes = path
    value = function.__globals__.get(name, _MISSING)
    if value is _MISSING or value is getattr(builtins, name, _MISSING):
        return
    _follow(found, name, value, attributes, enter)


def _follow(
    found: dict[str, object],
    name: str,
    value: object,
    attributes: list[str],
    enter: Callable[[ModuleType], bool],
) -> None:
    while attributes and isinstance(value, ModuleType) and enter(value):
        inner = getattr(value, attributes[0], _MISSING)
        if inner is _MISSING:
            break
        name, value = f"{name}.{attributes[0]}", inner
        attributes = attributes[1:]
    found[name] = value


def _imported(instructions: list[dis.Instruction]) -> Iterator[str]:
    for instruction in instructions:
        if instruction.opname == "IMPORT_FROM":
            yield str(instruction.argval)
        elif not instruction.opname.startswith("STORE"):
            return


def _add_import(
    found: dict[str, object], load: _Load, function: FunctionType, enter: Callable[[ModuleType], bool]
) -> None:
    name, *taken = load.path
    package = function.__globals__.get("__package__")
    absolute = importlib.util.resolve_name("." * load.level + name, package) if load.level else name
    top = sys.modules.get(absolute.partition(".")[0])
    if top is not None and not enter(top):
        return
    module = importlib.import_module(absolute)
    found[absolute] = module
    for attribute in taken:
        _follow(found, absolute, module, [attribute], enter)
