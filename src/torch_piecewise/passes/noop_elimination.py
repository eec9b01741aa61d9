"""Removes operators that give back their input: reshapes to the same shape, slices of everything."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torch_piecewise.passes.base import GraphPass
from torch_piecewise.passes.effects import Aliases, arguments_of, written_inputs

_aten = torch.ops.aten


@dataclass(frozen=True)
class NoopElimination(GraphPass):
    """Replaces calls that give back their input by that input.

    These are

    - ``view``, ``reshape``, ``_unsafe_view`` and ``expand`` to the shape the input has,
    - ``slice`` from the start to the end (or beyond it) in steps of one,
    - ``slice_scatter`` that overwrites everything: by what it writes.

    Symbolic sizes are compared by what is certain about the symbols; nothing is assumed, so no shape guard
    is added. A node stays where removing it would make an output of the graph one with an input or with
    another output, or would make one of two tensors of which one is written to.
    """

    def __call__(self, graph: fx.Graph) -> int:
        memory = _Memory(graph)
        removed = 0
        for node in list(graph.nodes):
            source = _noop_source(node)
            if source is None or not memory.may_replace(node, source):
                continue
            copies = not memory.aliases.may_share(node, source)
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            removed += 1
            if copies:
                # Two tensors became one; views did not change who shares memory.
                memory = _Memory(graph)
        return removed


class _Memory:
    """What must stay apart: inputs, outputs, and tensors that are written to."""

    def __init__(self, graph: fx.Graph) -> None:
        self.aliases = Aliases(graph)
        key = self.aliases.key
        self._inputs = {key(node) for node in graph.nodes if node.op in ("placeholder", "get_attr")}
        self._outputs = {
            key(source) for node in graph.nodes if node.op == "output" for source in node.all_input_nodes
        }
        self._written = {key(source) for node in graph.nodes for source in written_inputs(node)}

    def may_replace(self, node: fx.Node, source: fx.Node) -> bool:
        if self.aliases.may_share(node, source):
            given_back = source.op in ("placeholder", "get_attr") or _is_output(source)
            return not (_is_output(node) and given_back)
        mine, other = self.aliases.key(node), self.aliases.key(source)
        meets = mine in self._outputs and other in self._inputs | self._outputs
        return not meets and not {mine, other} & self._written


def _is_output(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _noop_source(node: fx.Node) -> fx.Node | None:
    """The input that the node gives back unchanged; None if it does something."""
    if node.op != "call_function" or node.target not in _NOOPS:
        return None
    name, is_noop = _NOOPS[node.target]
    arguments = arguments_of(node)
    base, source = arguments["self"], arguments[name]
    if not all(isinstance(item, fx.Node) and _is_tensor(item) for item in (base, source)):
        return None
    if not is_noop(_value(base).shape, arguments) or not _same_layout(node, source):
        return None
    return source if source is base or (_same_layout(base, source) and _is_tensor(node)) else None


def _to_same_size(shape: Sequence[Any], arguments: dict[str, Any]) -> bool:
    size = arguments["size"] if "size" in arguments else arguments["shape"]
    if len(size) != len(shape):
        return False
    # -1 stands for what is left over (view), or for the size there is (expand); with all others equal,
    # both are the size there is.
    return all(_is(wanted, -1) or _is(wanted, have) for wanted, have in zip(size, shape, strict=True))


def _takes_all(shape: Sequence[Any], arguments: dict[str, Any]) -> bool:
    start, end, step = arguments["start"], arguments["end"], arguments["step"]
    if not (start is None or _is(start, 0)) or not _is(step, 1):
        return False
    # An open end is written as the largest integer, which no bound on a symbol reaches.
    if end is None or (isinstance(end, int) and end >= sys.maxsize):
        return True
    size, last = shape[arguments["dim"]], _value(end)
    return last is not None and _certain(last >= size)


_NOOPS: dict[object, tuple[str, Callable[[Sequence[Any], dict[str, Any]], bool]]] = {
    _aten.view.default: ("self", _to_same_size),
    _aten.reshape.default: ("self", _to_same_size),
    _aten._unsafe_view.default: ("self", _to_same_size),
    _aten.expand.default: ("self", _to_same_size),
    _aten.slice.Tensor: ("self", _takes_all),
    _aten.slice_scatter.default: ("src", _takes_all),
}


def _value(item: Any) -> Any:
    """The number or fake tensor that an argument stands for; None where that is not known."""
    return item.meta.get("val") if isinstance(item, fx.Node) else item


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(_value(node), torch.Tensor)


def _is(one: Any, other: Any) -> bool:
    """Whether two sizes are equal for certain."""
    one, other = _value(one), _value(other)
    return one is not None and other is not None and _certain(one == other)


def _same_layout(one: fx.Node, other: fx.Node) -> bool:
    """Whether two tensors are alike but for their values, as far as both are described."""
    if not (_is_tensor(one) and _is_tensor(other)):
        return True
    first, second = _value(one), _value(other)
    alike = first.dtype == second.dtype and first.device == second.device and first.layout == second.layout
    return alike and all(
        len(mine) == len(its) and all(map(_is, mine, its))
        for mine, its in ((first.shape, second.shape), (first.stride(), second.stride()))
    )


def _certain(condition: Any) -> bool:
    # Imported for its cost: naming this pass in a key, as a start from the store does, needs no sympy.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(condition))
