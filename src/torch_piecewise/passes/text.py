"""Graphs as short text, for dumps, messages and the before -> after tests of rewrites."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def graph_text(graph: fx.Graph, *, shapes: bool = False) -> str:
    """One line a node: ``add = aten.add.Tensor(x, 1)``; the last one is ``return (...)``.

    Args:
        graph: any FX graph.
        shapes: also write what the node's metadata says: ``add: float32[s0, 4] = ...``.
    """
    return "\n".join(_line(node, shapes) for node in graph.nodes) + "\n"


def _line(node: fx.Node, shapes: bool) -> str:
    if node.op == "output":
        return f"return {_argument(node.args[0])}"
    kind = f": {_value(node.meta['val'])}" if shapes and "val" in node.meta else ""
    return f"{node.name}{kind} = {_call(node)}"


def _call(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "placeholder"
    if node.op == "get_attr":
        return f"self.{node.target}"
    arguments = [_argument(value) for value in node.args]
    arguments += [f"{name}={_argument(value)}" for name, value in node.kwargs.items()]
    return f"{_target(node)}({', '.join(arguments)})"


def _target(node: fx.Node) -> str:
    if isinstance(node.target, str):
        prefix = "self." if node.op == "call_module" else "."
        return f"{prefix}{node.target}"
    if type(node.target).__module__.startswith("torch."):
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))


def _argument(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, tuple):
        return f"({', '.join(map(_argument, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(_argument, value))}]"
    return str(value)


def _value(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(str(size) for size in value.shape)
        return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_value, value))})"
    return f"{type(value).__name__}({value})"
