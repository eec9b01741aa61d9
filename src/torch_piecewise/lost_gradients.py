"""Gradients that an op would lose without a word: a backward pass that reaches such a place is an error.

torch warns at most where an op has no backward formula, and says nothing where it writes its result. The
model trains on, with wrong gradients. Forward passes stay as they are: grad mode is often on by accident.
"""

from __future__ import annotations

import functools
from typing import Any, NoReturn

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from torch_piecewise.errors import SplitError
from torch_piecewise.torch_private.gradients import loses_gradients
from torch_piecewise.torch_private.nodes import example_value, storage_key
from torch_piecewise.torch_private.ops import SET_GRAD_ENABLED, op_base_name, written_operands


def refuse_lost_gradients(traced: Graph, calling: GraphModule) -> None:
    """Make backward passes from results that depend on lost gradients errors.

    Args:
        traced: the whole graph, as traced with gradients on.
        calling: what calls its pieces; the results that need it get a hook, in place.
    """
    lost = _lost(traced)
    results = next(iter(reversed(traced.nodes)))
    names = [lost.get(node) for node in results.all_input_nodes]
    if not any(names):
        return
    output = next(iter(reversed(calling.graph.nodes)))
    hooked: dict[Node, Node] = {}
    with calling.graph.inserting_before(output):
        for node, name in zip(output.all_input_nodes, names, strict=True):
            if name is not None and node.op != "placeholder":
                hooked[node] = calling.graph.call_function(refuse_backward, (node, name))
                hooked[node].meta.update(node.meta)
    output.args = map_arg(output.args, lambda node: hooked.get(node, node))
    calling.recompile()


def refuse_backward(value: Any, op: str) -> Any:
    """``value`` itself; a backward pass that reaches it raises a ``SplitError`` about ``op``."""
    if isinstance(value, torch.Tensor) and value.requires_grad:
        value.register_hook(functools.partial(_refused, op))  # type: ignore[no-untyped-call]  # as torch has it
    return value


def _refused(op: str, _gradient: torch.Tensor) -> NoReturn:
    raise SplitError(
        f"{op} passes no gradient on, but one has to go back through it",
        expected="an op with a backward formula, or inputs that need no gradient",
        got="a backward pass from a result that depends on it",
        hint="let it return its result and give it a formula (torch.library.register_autograd); where no "
        "gradient is wanted, call it under torch.no_grad() or detach its inputs",
    )


def _lost(graph: Graph) -> dict[Node, str]:
    """The nodes whose values depend on an input through an op that loses its gradient, and that op's name."""
    lost: dict[Node, str] = {}
    memory: dict[int, str] = {}
    recording = True
    for node in graph.nodes:
        if node.op == "call_function" and node.target is SET_GRAD_ENABLED:
            recording = bool(node.args[0])
        if not node.op.startswith("call") or not recording or "detach" in str(node.target):
            continue
        name = next((found for n in node.all_input_nodes if (found := _known(n, lost, memory))), None)
        if name is None and loses_gradients(node.target) and _wants_gradients(node):
            name = str(op_base_name(node.target))
        if name is None:
            continue
        if _is_floating(example_value(node)):
            lost[node] = name
        for written in written_operands(node) or ():
            key = storage_key(example_value(written))
            if key is not None:
                memory[key] = name
    return lost


def _known(node: Node, lost: dict[Node, str], memory: dict[int, str]) -> str | None:
    if node in lost:
        return lost[node]
    value = example_value(node)
    return memory.get(storage_key(value) or 0) if isinstance(value, torch.Tensor) else None


def _wants_gradients(node: Node) -> bool:
    written = set(written_operands(node) or ())
    values = [example_value(one) for one in node.all_input_nodes if one not in written]
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in values)


def _is_floating(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() or value.is_complex()
    return isinstance(value, tuple | list) and any(map(_is_floating, value))
