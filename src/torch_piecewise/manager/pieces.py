"""Pieces as a manager takes them: described ones, and graphs that somebody has at hand.

Apart from the manager because it loads torch's symbolic shapes, which a start from the store never needs.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule

from torch_piecewise.artifact import Artifact, guard_name
from torch_piecewise.describe import describe_pieces
from torch_piecewise.errors import ArgumentError, CompileError, FingerprintError
from torch_piecewise.fingerprint import fingerprint
from torch_piecewise.manager.units import BY_HAND, UNNAMED
from torch_piecewise.piece import EagerPiece, IntSpec, Piece, TensorSpec
from torch_piecewise.ranges import Range
from torch_piecewise.relations import Relation
from torch_piecewise.splitting import SplitItem
from torch_piecewise.torch_private.nodes import ensure_example_values, placeholder_facts
from torch_piecewise.torch_private.shapes import dim_text

_NAMELESS = ("GraphModule", "Module")
"""Classes of traced graphs that nobody named; a piece's graph has the piece's name for one."""

logger = logging.getLogger("torch_piecewise")


def piece_of(graph: GraphModule | Piece | SplitItem, example_inputs: Sequence[Any]) -> Piece:
    """The description of a graph; ranges are about the first symbol in the sizes of its tensor inputs.

    Args:
        graph: carries example values, or gets them from ``example_inputs``.

    Raises:
        CompileError: it is no graph, or one that is not compiled; says why.
    """
    if isinstance(graph, Piece):
        return graph
    name = BY_HAND
    if isinstance(graph, SplitItem):
        name, graph = graph.submod_name, graph.graph
    if not isinstance(graph, GraphModule):
        raise CompileError(
            "This is not a piece",
            expected="an item of tp.split_graph, or a torch.fx.GraphModule",
            got=f"{graph!r} ({type(graph).__name__})",
            hint="give an item that tp.split_graph(graph, splitting_ops)[1] holds",
        )
    if name == BY_HAND and type(graph).__name__ not in _NAMELESS:
        name = type(graph).__name__
    graph = _returning_a_tuple(graph)
    _check_examples(graph, example_inputs)
    ensure_example_values(graph, example_inputs)
    _sources, fakes, shape_env = placeholder_facts(graph)
    item = SplitItem(submod_name=name, graph_id=0, is_splitting_graph=False, graph=graph)
    (described,) = describe_pieces([item], shape_env, (), _first_symbol(fakes))
    if isinstance(described, EagerPiece):
        raise CompileError(
            "This graph is not one to compile",
            expected="a graph that computes something from plain dense tensors",
            got=described.reason,
            hint="run graph.forward as it is",
        )
    return described


def _returning_a_tuple(graph: GraphModule) -> GraphModule:
    """``graph``, or where it returns something else than a tuple a copy of it that returns that in one."""
    (output,) = graph.graph.find_nodes(op="output")
    if isinstance(output.args[0], (tuple, list)):
        return graph
    copied = Graph()
    copied.output((copied.graph_copy(graph.graph, {}),))
    return GraphModule(graph, copied)


def _check_examples(graph: GraphModule, example_inputs: Sequence[Any]) -> None:
    inputs = graph.graph.find_nodes(op="placeholder")
    if all("example_value" in node.meta or "val" in node.meta for node in inputs):
        return
    if len(example_inputs) != len(inputs):
        raise CompileError(
            "This graph does not say what its inputs are",
            expected=f"example_inputs, one for each of {', '.join(str(node.target) for node in inputs)}",
            got=f"{len(example_inputs)} of them",
            hint="give tensors like those it will be called with; fake ones keep sizes dynamic",
        )


def identity(piece: Piece) -> str:
    """The fingerprint of ``piece``; where it has none, a name that no other piece shares."""
    try:
        return fingerprint(piece)
    except FingerprintError as error:
        logger.info("%s is compiled for itself and not kept: %s", piece.name, error.what)
        return f"{UNNAMED} {uuid.uuid4().hex}"


def serves(piece: Piece, range: Range, inputs: Sequence[Any], artifact: Artifact | None) -> bool:
    """Whether the piece, compiled to ``artifact`` for ``range``, may run on ``inputs``; None runs on any."""
    values = _symbol_values(piece, inputs)
    if piece.dispatch is not None and values.get(piece.dispatch, range.start) not in range:
        return False
    guards = () if artifact is None else artifact.guards
    named = {
        guard_name(i): values[symbol.name] for i, symbol in enumerate(piece.symbols) if symbol.name in values
    }
    return all(Relation(text).holds(named) for text in guards)


def _symbol_values(piece: Piece, inputs: Sequence[Any]) -> dict[str, int]:
    """What the piece's symbols are in a call, as far as its sizes tell."""
    _check_inputs(piece, inputs)
    found: dict[str, int] = {}
    for spec, value in zip(piece.inputs, inputs, strict=True):
        if isinstance(spec, IntSpec):
            found[str(spec.value)] = int(value)
        elif isinstance(spec, TensorSpec):
            found |= dict(zip(map(str, spec.size), value.shape, strict=True))
    return found


def _check_inputs(piece: Piece, inputs: Sequence[Any]) -> None:
    if len(inputs) != len(piece.inputs):
        raise _other_inputs(piece, f"{len(inputs)} inputs")
    for position, (spec, value) in enumerate(zip(piece.inputs, inputs, strict=True)):
        if isinstance(spec, IntSpec) and not isinstance(value, int | torch.SymInt):
            raise _other_inputs(piece, f"input {position} is {value!r} ({type(value).__name__})")
        if isinstance(spec, TensorSpec) and not isinstance(value, torch.Tensor):
            raise _other_inputs(piece, f"input {position} is {value!r} ({type(value).__name__})")
        if isinstance(spec, TensorSpec) and value.dim() != len(spec.size):
            raise _other_inputs(piece, f"input {position} has {value.dim()} dims")


def _other_inputs(piece: Piece, got: str) -> ArgumentError:
    named = (
        f"a tensor of size [{', '.join(map(str, spec.size))}]" if isinstance(spec, TensorSpec) else "a number"
        for spec in piece.inputs
    )
    return ArgumentError(
        f"These are not inputs of {piece.name}",
        expected=f"{len(piece.inputs)} in the order of the graph's placeholders: {', '.join(named)}",
        got=got,
        hint="give what the compiled piece would be called with",
    )


def _first_symbol(fakes: Sequence[Any]) -> str | None:
    tensors = [fake for fake in fakes if isinstance(fake, torch.Tensor)]
    names = (dim_text(size) for fake in tensors for size in fake.shape)
    return next((name for name in names if isinstance(name, str) and name.isidentifier()), None)
