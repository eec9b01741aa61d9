"""Write down what a trace read of the model's modules, as ``runtime/model.py`` compares it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.nn import Module

from torch_piecewise.input_guards import BY_IDENTITY, BY_KEYS, BY_LENGTH, BY_VALUE
from torch_piecewise.runtime.code import PYTHON, code_tag, method_tags, names_called
from torch_piecewise.runtime.model import hook_names, is_plain_path, looks, own_functions, read
from torch_piecewise.torch_private.dynamo import InputGuard

_HOW = {
    **dict.fromkeys(BY_VALUE, "is"),
    **dict.fromkeys(BY_LENGTH, "length"),
    **dict.fromkeys((*BY_IDENTITY, "CLOSURE_MATCH"), "called"),
    "TYPE_MATCH": "a",
}
_MODULE = re.compile(r"\._modules\['([^']+)'\]")
_CLASS_ATTRIBUTE = re.compile(
    r"dict\(type\((?P<object>.+)\)(?:\.__mro__\[\d+\])?\.__dict__\)\['(?P<name>\w+)'\]"
)
_TABLES = ("._modules", "._parameters", "._buffers")
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout)


def modules_document(
    model: Module, guards: Iterable[InputGuard], owner: str, tensors: Iterable[str]
) -> dict[str, Any]:
    """What ``check_modules`` compares.

    What was read of one module counts as read of every module of its class: of blocks that are traced once,
    the trace tells of the first alone.

    Args:
        guards: what the trace read.
        owner: what their paths call the model.
        tensors: the parameters and buffers that it read.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    seen = {path.rpartition(".")[0] for path in tensors}
    seen.add("")
    facts: dict[type, set[tuple[str, str]]] = defaultdict(set, {type(model): set()})
    for guard in guards:
        # An attribute of a class is read through its object: one that the object has itself would win.
        text = _CLASS_ATTRIBUTE.sub(r"\g<object>.\g<name>", guard.path)
        if text.startswith(owner):
            path, what = _place(text.removeprefix(owner), modules)
            seen.add(path)
            facts[type(modules[path])].add((what, guard.kind))
    # An object may be given functions of its own.
    functions = [
        value
        for module in modules.values()
        if type(module) in facts
        for value in vars(module).values()
        if isinstance(value, FunctionType | MethodType)
    ]
    names = names_called(facts, functions)
    kinds: dict[str, int] = {}
    rows = []
    for path, module in modules.items():
        kind: dict[str, Any] = {"training": module.training}
        if type(module) in facts:
            kind |= _kind(module, facts[type(module)], frozenset(names))
            if path not in seen:
                kind["optional"] = True
        rows.append([path, kinds.setdefault(json.dumps(kind, sort_keys=True), len(kinds))])
    return {
        "python": PYTHON,
        "names": names,
        "kinds": [json.loads(text) for text in kinds],
        "rows": rows,
    }


def _place(rest: str, modules: dict[str, Module]) -> tuple[str, str]:
    """The innermost module on the way, and the rest of the way."""
    path = ""
    while (step := _MODULE.match(rest)) is not None:
        inner = f"{path}.{step[1]}" if path else step[1]
        if inner not in modules:
            break
        path, rest = inner, rest[step.end() :]
    return path, rest


def _kind(module: Module, facts: set[tuple[str, str]], names: Collection[str]) -> dict[str, Any]:
    kind: dict[str, Any] = {"class": type(module).__qualname__}
    hooks = hook_names(module)
    if hooks:
        kind["hooks"] = hooks
    if own := own_functions(module, names):
        kind["own"] = own
    if tags := method_tags(type(module), names):
        kind["code"] = tags
    if any(what == "._modules" and guard in (*BY_KEYS, *BY_LENGTH) for what, guard in facts):
        kind["children"] = [name for name, _ in module.named_children()]
    rows = {row for what, guard in facts if (row := _row(module, what, guard)) is not None}
    functions = {what for what, how, _ in rows if how == "called"}
    functions.update(f".{name}" for name in own)
    rows |= {(what, "code", tag) for what in functions if (tag := code_tag(read(module, what)))}
    if rows:
        kind["read"] = sorted(rows)
    return kind


def _row(module: Module, what: str, guard: str) -> tuple[str, str, str] | None:
    """One fact; None for what is compared elsewhere, or cannot be."""
    how = _HOW.get(guard)
    # Training flags are compared on each call: they may be set after loading.
    if how is None or what in _TABLES or what.endswith(".training") or not is_plain_path(what):
        return None
    try:
        value = read(module, what)
    except (LookupError, AttributeError, TypeError):
        return None
    if how == "is" and not isinstance(value, _PLAIN):
        return None
    if isinstance(value, Module) or (how == "called" and not hasattr(value, "__qualname__")):
        return None
    return what, how, looks(how, value)
