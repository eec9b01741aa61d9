"""A module tree as ingredients: its classes' code, its instances' state, its tensors but for their values."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_piecewise.cache_key.base import Ingredient
from torch_piecewise.cache_key.code import class_digest, class_values, goes_by_name, name_of
from torch_piecewise.cache_key.plain import OPAQUE
from torch_piecewise.cache_key.values import Describer
from torch_piecewise.torch_private.store import (
    module_bookkeeping,
    module_hooks,
    registered_children,
    registered_tensors,
)

LABELS = frozenset(
    {
        # Where weights came from.
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "transformers_version",
        # Read by transformers' generate(), outside of what is compiled; differs between checkpoints.
        "generation_config",
        # Python's hash of a string: another one in each process.
        "_original_object_hash",
        "warnings_issued",
    }
)
"""Attributes of common libraries that never change what is computed; by default they do not count."""


def module_tree_ingredients(module: nn.Module, *, ignore: Collection[str] = LABELS) -> tuple[Ingredient, ...]:
    """Two ingredients: ``classes``, the code of each class once; ``module``, each submodule's state by path.

    A parameter or buffer counts by name, shape, dtype, stride, device type and ``requires_grad``, never by
    its values; tied ones by which they are tied to. Plain attributes count by value. Other objects count by
    class and state, as deep as it goes; what cannot be looked into is ``opaque`` (see :func:`opaque_paths`).

    Args:
        module: the root. Its ``eps`` is ``module.eps``, that of a child ``module.child.eps``.
        ignore: attribute names that never count, at any depth.
    """
    return _Tree(ignore).ingredients(module)


def opaque_paths(ingredients: Collection[Ingredient], inside: str = "") -> Iterator[str]:
    """Paths of what counts by its class only, because its state cannot be seen."""
    for ingredient in ingredients:
        path = ".".join(part for part in (inside, ingredient.name) if part)
        if isinstance(ingredient.value, tuple):
            yield from opaque_paths(ingredient.value, path)
        elif isinstance(ingredient.value, str) and ingredient.value.startswith(OPAQUE):
            yield path


class _Tree:
    def __init__(self, ignore: Collection[str]) -> None:
        self._describer = Describer(ignore)
        self._bookkeeping = module_bookkeeping()
        self._ignore = frozenset(ignore)

    def ingredients(self, root: nn.Module) -> tuple[Ingredient, ...]:
        modules = list(_walk(root, self._describer))
        nodes = tuple(Ingredient(path, self._node(path, module)) for path, module in modules)
        memory = tuple(_shared_memory(modules))
        module = Ingredient("module", (*nodes, Ingredient("(shared memory)", memory)) if memory else nodes)
        return (Ingredient("classes", tuple(self._classes())), module)

    def _node(self, path: str, module: nn.Module | str) -> str | tuple[Ingredient, ...]:
        if isinstance(module, str):
            return f"same module as {module}"
        kind = type(module)
        self._describer.classes.setdefault(kind)
        where = f"module.{path}" if path else "module"
        values = {name: value for name, value in vars(module).items() if name not in self._bookkeeping}
        hooks = {f"({name})": found for name, found in module_hooks(module).items()}
        return (
            Ingredient("(class)", name_of(kind)),
            *self._describer.attributes(values, where),
            *self._tensors(module, where),
            *self._describer.attributes(hooks, where),
        )

    def _tensors(self, module: nn.Module, where: str) -> Iterator[Ingredient]:
        for name, tensor in registered_tensors(module):
            yield Ingredient(name, self._describer.value(tensor, f"{where}.{name}"))

    def _classes(self) -> Iterator[Ingredient]:
        names: dict[str, int] = {}
        done: set[type] = set()
        # Describing the plain values of one class may meet another.
        while todo := [cls for cls in self._describer.classes if cls not in done]:
            for cls in todo:
                done.add(cls)
                if goes_by_name(cls.__module__):
                    continue
                name = name_of(cls)
                names[name] = names.get(name, 0) + 1
                # Classes made in a function can share a name; they are met in the same order every time.
                label = name if names[name] == 1 else f"{name}#{names[name]}"
                values = {key: value for key, value in class_values(cls).items() if key not in self._ignore}
                parts = self._describer.attributes(values, f"classes.{label}")
                yield Ingredient(label, (Ingredient("(code)", class_digest(cls)), *parts))


def _walk(module: nn.Module, describer: Describer, path: str = "") -> Iterator[tuple[str, nn.Module | str]]:
    known = describer.first_path(module, f"module.{path}" if path else "module")
    if known is not None:
        yield path, known
        return
    yield path, module
    for name, child in registered_children(module):
        yield from _walk(child, describer, f"{path}.{name}" if path else name)


def _shared_memory(modules: list[tuple[str, nn.Module | str]]) -> Iterator[Ingredient]:
    """Tensors that overlap in memory without being one tensor; code that writes to one changes the other."""
    spans: list[_Span] = []
    seen: set[int] = set()
    for path, module in modules:
        if isinstance(module, str):
            continue
        for name, tensor in registered_tensors(module):
            span = None if id(tensor) in seen else _span(tensor, f"{path}.{name}" if path else name)
            seen.add(id(tensor))
            if span is not None:
                spans.append(span)
    widest: _Span | None = None
    for span in sorted(spans, key=lambda span: (span.device, span.start, span.end)):
        if widest is None or widest.device != span.device:
            widest = span
            continue
        if span.start < widest.end:
            yield Ingredient(span.name, f"overlaps {widest.name}")
        widest = max(widest, span, key=lambda span: span.end)


@dataclass(frozen=True, slots=True)
class _Span:
    name: str
    device: str
    start: int
    end: int


def _span(tensor: torch.Tensor, name: str) -> _Span | None:
    """The bytes from ``start`` up to ``end`` that a tensor reaches; None where it has none to ask for."""
    if is_lazy(tensor) or tensor.layout != torch.strided or tensor.device.type == "meta":
        return None
    if tensor.numel() == 0:
        return None
    try:
        start = tensor.data_ptr()
    except RuntimeError:
        # Wrappers and fakes have no memory of their own.
        return None
    if start == 0:
        return None
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return _Span(name, str(tensor.device), start, start + extent * tensor.element_size())
