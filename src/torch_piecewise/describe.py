"""Describe the pieces of a split graph by values: what is fingerprinted, sent to workers and compiled."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_piecewise.piece import Dim, EagerPiece, InputSpec, IntSpec, Piece, TensorSpec
from torch_piecewise.relations import Relation
from torch_piecewise.splitting import SplitItem
from torch_piecewise.torch_private.nodes import example_value, storage_key
from torch_piecewise.torch_private.ops import op_mutates, written_operands
from torch_piecewise.torch_private.shapes import ShapeEnv, describe_input, symbols_in

_IN_PLACE_OPERATORS = frozenset(
    (
        operator.iadd,
        operator.iand,
        operator.ifloordiv,
        operator.ilshift,
        operator.imatmul,
        operator.imod,
        operator.imul,
        operator.ior,
        operator.ipow,
        operator.irshift,
        operator.isub,
        operator.itruediv,
        operator.ixor,
        operator.setitem,
    )
)


def describe_pieces(
    items: Iterable[SplitItem],
    shape_env: ShapeEnv | None,
    relations: Iterable[Relation],
    dispatch: str | None,
) -> list[Piece | EagerPiece]:
    """Describe every piece that is no cut.

    Args:
        shape_env: where the trace's symbols live; None for a graph without any.
        relations: what the trace knows about its symbols.
        dispatch: the symbol that ranges and sizes are about.

    Returns:
        In the order of ``items``: a piece to compile, or why it stays eager.
    """
    known = {relation.text: relation.symbols for relation in relations}
    return [_describe(item, shape_env, known, dispatch) for item in items if not item.is_splitting_graph]


def _describe(
    item: SplitItem,
    shape_env: ShapeEnv | None,
    relations: Mapping[str, frozenset[str]],
    dispatch: str | None,
) -> Piece | EagerPiece:
    placeholders = [node for node in item.graph.graph.nodes if node.op == "placeholder"]
    values = [example_value(node) for node in placeholders]
    reason = _why_eager(item.graph, placeholders, values)
    specs = [describe_input(value) for value in values]
    if reason is None and None in specs:
        node = placeholders[specs.index(None)]
        reason = f"input {node.name!r} is no plain dense tensor ({type(example_value(node)).__name__})"
    complex_inputs = [n.name for n, spec in zip(placeholders, specs, strict=True) if _is_complex(spec)]
    if reason is None and complex_inputs:
        reason = f"input {complex_inputs[0]!r} is complex"
    if reason is not None:
        return EagerPiece(item.submod_name, item.graph, reason)
    inputs: tuple[InputSpec, ...] = tuple(spec for spec in specs if spec is not None)
    symbols = symbols_in(dims_of(inputs), shape_env) if shape_env is not None else ()
    names = {symbol.name for symbol in symbols}
    return Piece(
        name=item.submod_name,
        index=item.graph_id,
        graph=item.graph,
        inputs=inputs,
        symbols=symbols,
        relations=tuple(text for text, used in relations.items() if used and used <= names),
        dispatch=dispatch if dispatch in names else None,
    )


def _is_complex(spec: InputSpec | None) -> bool:
    return isinstance(spec, TensorSpec) and spec.dtype.is_complex


def changed_inputs(graph: GraphModule) -> frozenset[int]:
    """Positions of the graph's inputs that it changes in place, themselves or through a view."""
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    changed = {
        storage_key(value)
        for node in graph.graph.nodes
        if _mutates(node)
        for operand in _changed_operands(node)
        if isinstance(value := example_value(operand), torch.Tensor)
    }
    values = [example_value(node) for node in placeholders]
    return frozenset(
        index
        for index, value in enumerate(values)
        if isinstance(value, torch.Tensor) and storage_key(value) in changed - {None}
    )


def _changed_operands(node: Node) -> list[Node]:
    written = written_operands(node)
    if written is not None:
        return written
    if op_mutates(node.target) or "out" in node.kwargs:
        return node.all_input_nodes
    return node.all_input_nodes[:1]


def dims_of(inputs: Iterable[InputSpec]) -> list[Dim]:
    """Every size, stride and offset that ``inputs`` mention, in order."""
    dims: list[Dim] = []
    for spec in inputs:
        if isinstance(spec, TensorSpec):
            dims += [*spec.size, *spec.stride, spec.storage_offset]
        elif isinstance(spec, IntSpec):
            dims.append(spec.value)
    return dims


def _why_eager(graph: GraphModule, placeholders: list[Node], values: list[Any]) -> str | None:
    operations = [node for node in graph.graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    if not operations:
        return "it computes nothing"
    if any("example_value" not in node.meta and "val" not in node.meta for node in placeholders):
        return "the graph carries no example values"
    shared = _shared_storage(values)
    if shared and any(_mutates(node) for node in operations):
        first, second = (placeholders[index].name for index in shared)
        return f"it changes a tensor in place while {first!r} and {second!r} share memory"
    return None


def _shared_storage(values: list[Any]) -> tuple[int, int] | None:
    seen: dict[int, int] = {}
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            key = storage_key(value)
            if key is not None and key in seen:
                return seen[key], index
            if key is not None:
                seen[key] = index
    return None


def _mutates(node: Node) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function":
        return False
    if node.target in _IN_PLACE_OPERATORS or node.kwargs.get("inplace") is True:
        return True
    mutates = op_mutates(node.target)
    if mutates is not None:
        return mutates
    name = str(getattr(node.target, "__name__", ""))
    return "out" in node.kwargs or name == "setitem" or (name.endswith("_") and not name.endswith("__"))
