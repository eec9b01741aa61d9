"""Python values as ingredients: exact where plain, by class and state where not, and named where opaque."""

from __future__ import annotations

import collections
import functools
import types
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from torch_piecewise.cache_key.base import Ingredient, PythonValue, Scalar, short_digest
from torch_piecewise.cache_key.code import code_digest, function_values, goes_by_name, name_of
from torch_piecewise.cache_key.plain import (
    LONGEST_TEXT,
    OPAQUE,
    flat_text,
    member_text,
    plain_value,
    tensor_text,
    worth_of,
)
from torch_piecewise.torch_private.store import operator_name

Value = Scalar | tuple[Ingredient, ...]

_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.MethodDescriptorType,
)
_DEEPEST = 40


class Describer:
    """Describes values; remembers what it has seen, so that shared and cyclic objects are named once.

    Args:
        ignore: attribute names that only label and never count.
    """

    def __init__(self, ignore: Collection[str] = ()) -> None:
        self._ignore = frozenset(ignore)
        self._paths: dict[int, str] = {}
        self._keep: list[Any] = []
        self.classes: dict[type, None] = {}

    def first_path(self, thing: PythonValue, path: str) -> str | None:
        """Where ``thing`` was met before; None the first time, which is remembered as ``path``."""
        known = self._paths.get(id(thing))
        if known is None:
            self._paths[id(thing)] = path
            # An id is only good while its object lives.
            self._keep.append(thing)
        return known

    def attributes(self, values: dict[str, Any], path: str, depth: int = 0) -> tuple[Ingredient, ...]:
        """Each attribute as an ingredient, by name."""
        return tuple(
            Ingredient(name, self.value(values[name], f"{path}.{name}", depth))
            for name in sorted(values)
            if name not in self._ignore
        )

    def value(self, value: PythonValue, path: str, depth: int = 0) -> Value:
        """``value`` as it goes into a key.

        Strings are in quotes, so that none can be taken for another kind of value.
        """
        plain, is_plain = plain_value(value)
        if is_plain:
            return plain
        if depth > _DEEPEST:
            return f"{OPAQUE} {name_of(type(value))}: nested too deep"
        if isinstance(value, dict | list | tuple | set | frozenset | collections.deque):
            return self._container(value, path, depth)
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path, depth)
        if callable(value) and not isinstance(value, nn.Module):
            return self._callable(value, path, depth)
        return self._object(value, path, depth)

    def _container(self, value: PythonValue, path: str, depth: int) -> Value:
        kind = name_of(type(value))
        text = flat_text(value)
        if text is not None:
            return text if len(text) <= LONGEST_TEXT else f"{kind} of {len(value)}: {short_digest(text)}"
        known = self.first_path(value, path)
        if known is not None:
            return f"same as {known}"
        parts = [Ingredient("(class)", kind), *self._items(value, path, depth + 1)]
        own = getattr(value, "__dict__", None)
        if own:
            parts.append(Ingredient("(attributes)", self.attributes(own, path, depth + 1)))
        return tuple(parts)

    def _items(self, value: PythonValue, path: str, depth: int) -> Iterable[Ingredient]:
        if isinstance(value, dict):
            for number, (key, item) in enumerate(value.items()):
                plain, is_plain = plain_value(key)
                name = f"[{plain}]" if is_plain else f"[key {number}, {name_of(type(key))}]"
                yield Ingredient(name, self.value(item, f"{path}{name}", depth))
        elif isinstance(value, set | frozenset):
            # Members without a text count by class and number: sets have no order to name them by.
            for name, count in sorted(collections.Counter(map(member_text, value)).items()):
                yield Ingredient(f"[{name}]", count)
        else:
            for number, item in enumerate(value):
                yield Ingredient(f"[{number}]", self.value(item, f"{path}[{number}]", depth))

    def _tensor(self, value: torch.Tensor, path: str, depth: int) -> Value:
        known = self.first_path(value, path)
        if known is not None:
            return f"same tensor as {known}"
        flatten = getattr(value, "__tensor_flatten__", None)
        if flatten is None or type(value) in (torch.Tensor, nn.Parameter):
            return tensor_text(value)
        # A wrapper (quantised, distributed, ...): what it wraps, and what it says about it.
        names, context = flatten()
        inner = {name: getattr(value, name) for name in names}
        return (
            Ingredient("(tensor)", tensor_text(value)),
            Ingredient("(context)", self.value(context, f"{path}.(context)", depth + 1)),
            *self.attributes(inner, path, depth + 1),
        )

    def _callable(self, value: PythonValue, path: str, depth: int) -> Value:
        if isinstance(value, types.MethodType):
            owner = self.value(value.__self__, f"{path}.(self)", depth + 1)
            method = self.value(value.__func__, f"{path}.(method)", depth + 1)
            return (Ingredient("(method)", method), Ingredient("(self)", owner))
        if isinstance(value, functools.partial):
            bound = {"(arguments)": list(value.args), "(keywords)": dict(value.keywords)}
            function = self.value(value.func, f"{path}.(function)", depth + 1)
            return (Ingredient("(partial)", function), *self.attributes(bound, path, depth + 1))
        if isinstance(value, type):
            if not goes_by_name(value.__module__):
                self.classes.setdefault(value)
            return f"class {name_of(value)}"
        if isinstance(value, types.FunctionType) and not goes_by_name(value.__module__):
            return self._function(value, path, depth)
        if isinstance(value, _FUNCTIONS):
            return f"function {name_of(value)}"
        operator = operator_text(value)
        if operator is not None:
            return operator
        return self._object(value, path, depth)

    def _function(self, value: types.FunctionType, path: str, depth: int) -> Value:
        name = f"function {name_of(value)} {code_digest(value, values=False)}"
        held = function_values(value)
        if not held:
            return name
        known = self.first_path(value, path)
        if known is not None:
            return f"same function as {known}"
        return (Ingredient("(function)", name), *self.attributes(held, path, depth + 1))

    def _object(self, value: PythonValue, path: str, depth: int) -> Value:
        known = self.first_path(value, path)
        if known is not None:
            return f"same object as {known}"
        kind = type(value)
        if not goes_by_name(kind.__module__):
            self.classes.setdefault(kind)
        state = _state(value)
        if state is None:
            return f"{OPAQUE} {name_of(kind)}"
        parts = [Ingredient("(class)", name_of(kind))]
        worth = worth_of(value)
        if worth is not None:
            parts.append(Ingredient("(value)", worth))
        return (*parts, *self.attributes(state, path, depth + 1))


def _state(value: PythonValue) -> dict[str, Any] | None:
    """The attributes of an object; None where they cannot be seen (written in C)."""
    state: dict[str, Any] = {}
    seen = False
    for base in reversed(type(value).__mro__):
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            seen = True
            private = slot.startswith("__") and not slot.endswith("__")
            name = f"_{base.__name__.lstrip('_')}{slot}" if private else slot
            if isinstance(vars(base).get(name), types.MemberDescriptorType) and hasattr(value, name):
                state[name] = getattr(value, name)
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict):
        state.update({str(name): item for name, item in own.items()})
        seen = True
    # With an object of a base written in C, an empty __dict__ says nothing.
    if not seen or (not state and goes_by_name(type(value).__module__)):
        return None
    return state


def operator_text(value: PythonValue) -> str | None:
    """The text of an operator of the dispatcher, with the body of a Python one; None for all else."""
    named = operator_name(value)
    if named is None:
        return None
    name, body = named
    return f"operator {name}" if body is None else f"operator {name} {code_digest(body)}"
