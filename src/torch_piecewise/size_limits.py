"""Conditions on sizes that no guard of a trace tells: found by looking at the traced graph."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_piecewise.guard_policy import LARGEST_INDEX, limit_error
from torch_piecewise.relations import Relation
from torch_piecewise.torch_private.nodes import example_value, user_line
from torch_piecewise.torch_private.shapes import dim_text, extent_text, is_symbolic_int

_SQUEEZE = "squeeze"


def squeezed_dims(graph: GraphModule) -> Iterator[Relation]:
    """That no dim which ``squeeze`` was traced to leave alone has size 1.

    With sizes about which nothing is assumed torch takes a dynamic dim for one that stays, and keeps no guard
    (``guard_or_false`` in ``squeeze``'s meta function, 2.11 and 2.13); a compiled piece would keep the dim.
    """
    for node in _nodes(graph):
        if not _is_squeeze(node.target) or not isinstance(node.args[0], Node):
            continue
        value = example_value(node.args[0])
        if isinstance(value, torch.Tensor):
            for size in (value.shape[dim] for dim in _dims(node, value)):
                if is_symbolic_int(size):
                    yield Relation(f"Ne({dim_text(size)}, 1)", user_line(node))


def sliced_dims(graph: GraphModule) -> Iterator[Relation]:
    """That no dim of which a slice was traced to take one element has size 0.

    ``x[:1]`` of a dynamic dim counts as one element under ``backed_size_oblivious``, and torch keeps no guard
    (2.13); a compiled piece would read past the end.
    """
    for node in _nodes(graph):
        if node.target is not operator.getitem or not isinstance(node.args[0], Node):
            continue
        value, result = example_value(node.args[0]), example_value(node)
        if isinstance(value, torch.Tensor) and isinstance(result, torch.Tensor):
            for dim, place in _slices(node.args[1]):
                size = value.shape[dim]
                if is_symbolic_int(size) and not is_symbolic_int(result.shape[place]):
                    yield Relation(f"Ne({dim_text(size)}, 0)", user_line(node))


def _slices(index: Any) -> Iterator[tuple[int, int]]:
    """Dim of the tensor and dim of the result of each slice, up to where an index is of another kind."""
    dim = place = 0
    for one in index if isinstance(index, tuple) else (index,):
        if isinstance(one, slice):
            yield dim, place
        elif one is not None and not isinstance(one, int):
            return
        dim += one is not None
        place += not isinstance(one, int)


def index_limits(graph: GraphModule) -> Iterator[Relation]:
    """That every tensor of the graph can be indexed with 32 bits.

    Raises:
        ConfigError: one of them cannot, whatever the dynamic sizes are.
    """
    seen: set[str] = set()
    for node in _nodes(graph):
        for value in _tensors(example_value(node)):
            extent = extent_text(value)
            if isinstance(extent, int) and extent > LARGEST_INDEX:
                raise limit_error(f"a tensor of {extent} elements, from {user_line(node)}")
            if isinstance(extent, str) and extent not in seen:
                seen.add(extent)
                yield Relation(f"{extent} <= {LARGEST_INDEX}", promised_by="assume_32_bit_indexing")


def _nodes(graph: GraphModule) -> Iterator[Node]:
    for module in graph.modules():
        if isinstance(module, GraphModule):
            yield from module.graph.nodes


def _is_squeeze(target: Any) -> bool:
    name = target if isinstance(target, str) else str(getattr(target, "__name__", target))
    return name.partition(".")[0].rstrip("_").removesuffix("_copy") == _SQUEEZE


def _dims(node: Node, value: torch.Tensor) -> Iterable[int]:
    given: Any = node.args[1:] or node.kwargs.get("dim")
    if given in (None, ()):
        return range(value.dim())
    if isinstance(given, tuple) and len(given) == 1:
        given = given[0]
    dims: Sequence[Any] = given if isinstance(given, Sequence) else (given,)
    return [dim for dim in dims if isinstance(dim, int)]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
