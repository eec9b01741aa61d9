"""Graphs, pieces and programs as bytes, node for node.

``GraphModule``'s own pickling traces the module anew when it is read, which turns some function calls into
method calls and loses what nodes know; here a graph is a list of its nodes. Bytes are read with ``pickle``:
callers hand over only what the store has verified, or what their own worker process wrote.
"""

from __future__ import annotations

import builtins
import io
import marshal
import pickle
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

from torch_piecewise.errors import FingerprintError
from torch_piecewise.torch_private.ops import find_op, op_name, op_overload_name


def to_bytes(value: Any) -> bytes:
    """Serialise a piece, a record or a task.

    Raises:
        FingerprintError: it refers to something that another process cannot find (a local class, an open
            file); says what.
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(value)
    except Exception as error:
        raise FingerprintError(
            "This program cannot be kept",
            expected="functions, classes and constants that another process can import or rebuild",
            got=f"{type(error).__name__}: {error}",
            hint="move what it refers to to the top of a module; the program runs, unkept",
        ) from error
    return buffer.getvalue()


def from_bytes(data: bytes) -> Any:
    """The value that :func:`to_bytes` serialised. ``data`` has to be verified."""
    return pickle.loads(data)


@dataclass(frozen=True)
class _Reference:
    """A node, by its place in the graph."""

    position: int


@dataclass(frozen=True)
class _NodeParts:
    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any
    stack_trace: str | None


# Types of functions, methods, code and the like, which say of themselves that they are builtins.
_NAMED_IN_TYPES = {
    value: name
    for name, value in vars(types).items()
    if isinstance(value, type) and value.__module__ == "builtins" and not hasattr(builtins, value.__name__)
}


def _code(bare: bytes, constants: tuple[Any, ...]) -> types.CodeType:
    made: types.CodeType = marshal.loads(bare)
    return made.replace(co_consts=constants)


def _type_named(name: str) -> type:
    named: type = getattr(types, name)
    return named


class _Pickler(pickle.Pickler):
    """Adds what pickle lacks: graphs, code objects, types that only ``types`` names, and ops by name."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, GraphModule):
            return _rebuilt, _parts_of(value)
        if isinstance(value, types.CodeType):
            # A trace's code has constants that marshal does not know: dtypes, devices, classes.
            return _code, (marshal.dumps(value.replace(co_consts=())), value.co_consts)
        if isinstance(value, type) and value in _NAMED_IN_TYPES:
            return _type_named, (_NAMED_IN_TYPES[value],)
        if (name := _op_reference(value)) is not None:
            return find_op, (name,)
        if isinstance(value, types.MappingProxyType):
            return dict, (dict(value),)
        return NotImplemented


def _op_reference(value: Any) -> str | None:
    overload = op_overload_name(value)
    if overload is not None:
        return overload
    try:
        return op_name(value)
    except TypeError:
        return None


def _parts_of(module: GraphModule) -> tuple[list[_NodeParts], dict[str, Any]]:
    positions = {node: position for position, node in enumerate(module.graph.nodes)}

    def referred(value: Any) -> Any:
        return _Reference(positions[value]) if isinstance(value, Node) else value

    nodes = []
    attributes: dict[str, Any] = {}
    for node in module.graph.nodes:
        if node.op in ("get_attr", "call_module"):
            owner: Any = module
            for part in str(node.target).split("."):
                owner = getattr(owner, part)
            attributes[str(node.target)] = owner
        args, kwargs = map_aggregate(node.args, referred), map_aggregate(node.kwargs, referred)
        trace = node.meta.get("stack_trace")
        nodes.append(_NodeParts(node.op, node.name, node.target, args, kwargs, trace))
    return nodes, attributes


def _rebuilt(nodes: Sequence[_NodeParts], attributes: dict[str, Any]) -> GraphModule:
    root = torch.nn.Module()
    for path, value in attributes.items():
        *folders, name = path.split(".")
        holder = root
        for folder in folders:
            if not hasattr(holder, folder):
                holder.add_module(folder, torch.nn.Module())
            holder = getattr(holder, folder)
        setattr(holder, name, value)
    graph = Graph()
    made: list[Node] = []

    def resolved(value: Any) -> Any:
        return made[value.position] if isinstance(value, _Reference) else value

    for parts in nodes:
        args, kwargs = map_aggregate(parts.args, resolved), map_aggregate(parts.kwargs, resolved)
        node = graph.create_node(parts.op, parts.target, args, kwargs, parts.name)
        if parts.stack_trace is not None:
            node.meta["stack_trace"] = parts.stack_trace
        made.append(node)
    return GraphModule(root, graph)
