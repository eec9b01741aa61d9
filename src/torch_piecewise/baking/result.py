"""What becomes of a program's outputs, found out by handing the trace's own code marked ones."""

from __future__ import annotations

import ast
import dataclasses
import dis
import inspect
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from torch_piecewise.convention import TAIL_ARGUMENT
from torch_piecewise.entry import Entry
from torch_piecewise.errors import BundleError
from torch_piecewise.runtime.names import Named

_WRITES = frozenset(
    (
        "DELETE_ATTR",
        "DELETE_GLOBAL",
        "DELETE_SUBSCR",
        "STORE_DEREF",
        "STORE_GLOBAL",
        "STORE_SLICE",
        "STORE_SUBSCR",
    )
)
_WRITERS = frozenset(
    (
        "__delattr__",
        "__setitem__",
        "add",
        "append",
        "clear",
        "extend",
        "insert",
        "pop",
        "popitem",
        "popleft",
        "remove",
        "reverse",
        "sort",
    )
)

_CONSTANTS = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


def result_document(entry: Entry, args: tuple[Any, ...], kwargs: Mapping[str, Any], named: Named) -> Any:
    """How calls like this one build their result, as ``runtime/result.py`` reads it.

    Raises:
        BundleError: the trace changes other Python objects, or the result holds something that cannot be
            written down.
    """
    convention, shape = entry.convention, entry.shape
    bound = shape.signature.bind(*args, **kwargs)
    bound.apply_defaults()
    _refuse_writes(convention.tail, bound.arguments.values())
    outputs = tuple(torch.empty(0) for _ in range(_output_count(entry.program.stitched.source)))
    values = {**bound.arguments, TAIL_ARGUMENT: outputs}
    stand_in = _StandIn(shape.owner)
    if convention.owner_name is not None:
        values[convention.owner_name] = stand_in.root
    parameters, positional, keywords = _arguments(convention.tail, values)
    try:
        result = convention.tail_function(shape.function)(*positional, **keywords)
    except AttributeError as error:
        raise _side_effect(str(error)) from error
    writer = _TreeWriter(outputs, values, named)
    return {
        "parameters": parameters,
        "outputs": TAIL_ARGUMENT,
        "tree": writer.tree(result),
        "assigned": [[*place, writer.tree(value)] for place, value in stand_in.assigned()],
    }


class _StandIn:
    """Modules in the place of the model's: what the trace's code changes shows here and not there."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.places = {path: torch.nn.Module() for path, _ in model.named_modules(remove_duplicate=False)}
        self.root = self.places[""]
        for path, module in self.places.items():
            parent, _, name = path.rpartition(".")
            if path:
                self.places[parent].add_module(name, module)
        self._before = {path: set(vars(module)) for path, module in self.places.items()}

    def assigned(self) -> list[tuple[tuple[str, str, str], Any]]:
        """Module path, table and name of each buffer or parameter that was replaced, and by what.

        Raises:
            BundleError: another attribute was set.
        """
        found = []
        for path, module in self.places.items():
            for name in sorted(set(vars(module)) - self._before[path]):
                raise _side_effect(f"it changes the attribute {'.'.join(filter(None, (path, name)))!r}")
            for table in ("_buffers", "_parameters"):
                found += [((path, table, name), value) for name, value in vars(module)[table].items()]
        return found


def _output_count(source: str) -> int:
    returns = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return)]
    (result,) = (node.value for node in returns if not isinstance(node.value, ast.Name))
    return len(result.elts) if isinstance(result, ast.Tuple) else 0


def _refuse_writes(code: types.CodeType, arguments: Iterable[Any]) -> None:
    """Refuse code that changes lists, dicts and objects; of the model's own, :class:`_StandIn` tells."""
    containers = any(isinstance(value, list | dict | set) for value in arguments)
    writers = _WRITERS | {"update"} if containers else _WRITERS
    for step in dis.get_instructions(code):
        named = step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "LOAD_CONST")
        if step.opname in _WRITES or (named and step.argval in writers):
            raise _side_effect(f"its traced code writes to a Python object ({step.opname} {step.argval!r})")


def _side_effect(got: str) -> BundleError:
    return BundleError(
        "A bundle cannot hold this model: a call changes Python objects besides computing tensors",
        expected="a forward that returns its results, changes tensors in place and replaces buffers at most",
        got=got,
        hint="keep such state in buffers, or return it; tp.compile runs this model as it is",
    )


def _arguments(
    code: types.CodeType, values: Mapping[str, Any]
) -> tuple[list[str], list[Any], dict[str, Any]]:
    """The tail's parameters as text, and what to call it with."""
    names = list(code.co_varnames)
    positional, named = names[: code.co_argcount], names[code.co_argcount :]
    named, rest = named[: code.co_kwonlyargcount], named[code.co_kwonlyargcount :]
    parameters, given = list(positional), [values[name] for name in positional]
    keywords = {name: values[name] for name in named}
    if code.co_flags & inspect.CO_VARARGS:
        name = rest.pop(0)
        parameters.append(f"*{name}")
        given += values[name]
    elif named:
        parameters.append("*")
    parameters += named
    if code.co_flags & inspect.CO_VARKEYWORDS:
        parameters.append(f"**{rest[0]}")
        keywords |= values[rest[0]]
    return parameters, given, keywords


class _TreeWriter:
    def __init__(self, outputs: Sequence[Any], values: Mapping[str, Any], named: Named) -> None:
        self._outputs = {id(output): index for index, output in enumerate(outputs)}
        self._arguments = {id(value): name for name, value in values.items() if name != TAIL_ARGUMENT}
        self._named = named

    def tree(self, value: Any) -> dict[str, Any]:
        """One part of the result."""
        if id(value) in self._outputs:
            return {"output": self._outputs[id(value)]}
        if value is None or isinstance(value, _CONSTANTS):
            return {"value": self._named.json(value)}
        if id(value) in self._arguments:
            return {"argument": self._arguments[id(value)]}
        if type(value) in (tuple, list):
            return {type(value).__name__: [self.tree(item) for item in value]}
        if type(value) is dict:
            return {"dict": [[self._named.json(key), self.tree(item)] for key, item in value.items()]}
        return self._object(value)

    def _object(self, value: Any) -> dict[str, Any]:
        cls = type(value)
        name = f"{cls.__module__}:{cls.__qualname__}"
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            self._named.json(cls)
            return {"class": name, "items": [self.tree(item) for item in value]}
        if dataclasses.is_dataclass(value):
            self._named.json(cls)
            fields = {one.name: self.tree(getattr(value, one.name)) for one in dataclasses.fields(value)}
            return {"class": name, "fields": fields}
        if isinstance(value, torch.Tensor):
            name = "a tensor that no call computes"
        raise BundleError(
            "A bundle cannot write down what this model returns",
            expected="tensors, arguments and constants in tuples, lists, dicts, named tuples and dataclasses",
            got=name,
            hint="return such a structure; tp.compile runs this model as it is",
        )
