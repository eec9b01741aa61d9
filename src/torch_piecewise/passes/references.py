"""Which global names a Python function uses, and what they stand for."""

from __future__ import annotations

import builtins
import dis
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
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
    for code in _codes(function.__code__):
        instructions = list(dis.get_instructions(code))
        for index, instruction in enumerate(instructions):
            if instruction.opname in _GLOBAL:
                path = [str(instruction.argval), *_attributes(instructions[index + 1 :])]
                _add_global(found, path, function, enter)
            elif instruction.opname == "IMPORT_NAME":
                _add_import(found, instructions, index, function, enter)
    return found


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
    found: dict[str, object], path: list[str], function: FunctionType, enter: Callable[[ModuleType], bool]
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


def _add_import(
    found: dict[str, object],
    instructions: list[dis.Instruction],
    index: int,
    function: FunctionType,
    enter: Callable[[ModuleType], bool],
) -> None:
    # The two instructions before IMPORT_NAME push its level and its list of names.
    level = instructions[index - 2].argval if index >= 2 else 0
    name = "." * int(level or 0) + str(instructions[index].argval)
    package = function.__globals__.get("__package__")
    absolute = importlib.util.resolve_name(name, package) if level else name
    top = sys.modules.get(absolute.partition(".")[0])
    if top is not None and not enter(top):
        return
    module = importlib.import_module(absolute)
    found[absolute] = module
    for instruction in instructions[index + 1 :]:
        if instruction.opname == "IMPORT_FROM":
            _follow(found, absolute, module, [str(instruction.argval)], enter)
        elif not instruction.opname.startswith("STORE"):
            return
