"""Values that generated code refers to, as JSON and back: constants as they are, everything else by name."""

from __future__ import annotations

import builtins
import importlib
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torch_piecewise.errors import BundleError

_MODULES = ("torch", "operator", "math")
_HARMLESS = """
    abs bool complex dict divmod float frozenset getattr hasattr int isinstance iter len list max min next pow
    range reversed round set slice sorted str sum tuple type zip
"""
_BUILTINS = frozenset(_HARMLESS.split())
_TORCH_VALUES = (torch.dtype, torch.layout, torch.memory_format)
FindOp = Callable[[str, str], Any]
"""``(name, module)`` -> the splitting op of that name that the user's code registered, or an error."""


@dataclass(frozen=True)
class Named:
    """Turns values into JSON.

    Attributes:
        op_name: ``ns::name.overload`` of a dispatcher op; None for anything else.
        splitting_op: name and module of a splitting op of the user's; None for anything else.
    """

    op_name: Callable[[Any], str | None]
    splitting_op: Callable[[Any], tuple[str, str] | None]

    def json(self, value: Any) -> Any:
        """``value`` as JSON.

        Raises:
            BundleError: it is nothing that can be written down; says what.
        """
        if value is None or isinstance(value, bool | str) or type(value) is int:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, _TORCH_VALUES):
            return {"torch": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if type(value) in (tuple, list, set, frozenset):
            return {type(value).__name__: [self.json(item) for item in value]}
        if isinstance(value, dict):
            return {"dict": [[self.json(key), self.json(item)] for key, item in value.items()]}
        found = self.splitting_op(value)
        if found is not None:
            return {"splitting_op": found[0], "module": found[1]}
        op = self.op_name(value)
        if op is not None:
            return {"op": op}
        return self._by_name(value)

    def _by_name(self, value: Any) -> Any:
        if isinstance(value, type) and not value.__module__.startswith("torch"):
            name = {"class": f"{value.__module__}:{value.__qualname__}"}
            if resolve(name, _no_ops) is value:
                return name
        for dotted in _dotted_names(value):
            try:
                if resolve({"name": dotted}, _no_ops) is value:
                    return {"name": dotted}
            except BundleError:
                continue
        raise BundleError(
            f"A bundle cannot hold {_shown(value)}",
            expected="constants, torch's own functions, and splitting ops registered with tp.splitting_op",
            got=_shown(value),
            hint="register the function that uses it with tp.splitting_op, in a module that can be imported",
        )


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {getattr(value, '__qualname__', '') or repr(value)}"[:120]


def _dotted_names(value: Any) -> Iterator[str]:
    name = getattr(value, "__name__", None)
    if not isinstance(name, str):
        return
    module = getattr(value, "__module__", None)
    if isinstance(module, str):
        yield f"{module}.{getattr(value, '__qualname__', name)}"
    yield from (f"{place}.{name}" for place in ("builtins", *_MODULES))
    yield from (f"torch.{place}.{name}" for place in ("nn.functional", "_C._nn", "_C._VariableFunctions"))
    yield from (f"torch.{place}.{name}" for place in ("Tensor", "special", "linalg", "fft", "_C"))


def resolve(document: Any, find_op: FindOp) -> Any:
    """The value that :meth:`Named.json` wrote.

    Raises:
        BundleError: there is no such thing here, or it is of no kind that a bundle may name.
    """
    if document is None or isinstance(document, bool | int | float | str):
        return document
    if isinstance(document, Mapping) and document:
        kind, content = next(iter(document.items()))
        if kind in _KINDS:
            return _KINDS[kind](content, find_op)
        if "splitting_op" in document and "module" in document:
            return find_op(document["splitting_op"], document["module"])
    raise _unknown(repr(document))


def _attribute(dotted: str, _find_op: FindOp) -> Any:
    first, _, rest = dotted.partition(".")
    if first == "builtins" and rest in _BUILTINS:
        return getattr(builtins, rest)
    if first not in _MODULES or not rest:
        raise _unknown(dotted)
    found: Any = {"torch": torch, "operator": operator, "math": math}[first]
    for part in rest.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise _unknown(dotted)
    return found


def _class(name: str, _find_op: FindOp) -> Any:
    module, _, qualname = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise _unknown(name) from error
    if not isinstance(found, type):
        raise _unknown(name)
    return found


def _op(name: str, _find_op: FindOp) -> Any:
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    try:
        found = getattr(getattr(torch.ops, namespace), packet)
        return getattr(found, overload) if overload else found
    except AttributeError as error:
        raise BundleError(
            f"The bundle calls the op {name}, which is not registered here",
            expected=f"an op {name}",
            hint="import the library that defines it before tp.load",
        ) from error


def _items(content: Any, find_op: FindOp) -> list[Any]:
    return [resolve(item, find_op) for item in content]


_KINDS: dict[str, Callable[[Any, FindOp], Any]] = {
    "float": lambda content, _find: float(content),
    "torch": lambda content, _find: getattr(torch, content),
    "device": lambda content, _find: torch.device(content),
    "tuple": lambda content, find: tuple(_items(content, find)),
    "list": _items,
    "set": lambda content, find: set(_items(content, find)),
    "frozenset": lambda content, find: frozenset(_items(content, find)),
    "dict": lambda content, find: {resolve(k, find): resolve(v, find) for k, v in content},
    "op": _op,
    "class": _class,
    "name": _attribute,
}


def _no_ops(name: str, _module: str) -> Any:
    raise _unknown(name)


def _unknown(name: str) -> BundleError:
    return BundleError(
        "The bundle names something that is not here",
        expected="a constant, a function of torch, an importable class or a registered op",
        got=name,
        hint="load it with the code and the torch version that it was baked with",
    )
