"""What a graph was before a pass: enough to say whether the pass broke it, and to put it back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from torch_piecewise.passes.arguments import argument_problem


@dataclass(frozen=True)
class _NodeState:
    """A node as it was. Arguments are immutable in FX, so they can be kept as they are."""

    node: fx.Node
    op: str
    target: Any
    name: str
    type: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    meta: dict[str, Any]

    @classmethod
    def of(cls, node: fx.Node) -> _NodeState:
        return cls(
            node, node.op, node.target, node.name, node.type, node.args, dict(node.kwargs), dict(node.meta)
        )


class Snapshot:
    """A graph in good order, remembered node by node."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._states = [_NodeState.of(node) for node in graph.nodes]
        self._placeholders = _placeholders(graph)
        self._outputs = _outputs(graph)

    def problem(self) -> str | None:
        """What makes the graph broken now, or unlike what its callers expect; None if nothing does."""
        problem = order_problem(self._graph)
        if problem is not None:
            return problem
        placeholders, outputs = _placeholders(self._graph), _outputs(self._graph)
        if placeholders != self._placeholders:
            return f"its inputs were ({_list(self._placeholders)}) and are ({_list(placeholders)})"
        if outputs != self._outputs:
            return f"its outputs had the structure {self._outputs} and have {outputs}"
        return next(filter(None, map(argument_problem, self._changed())), None)

    def _changed(self) -> Iterator[fx.Node]:
        """Nodes that are new, or that call something else or with other arguments than before."""
        before = {state.node: state for state in self._states}
        for node in self._graph.nodes:
            state = before.get(node)
            if (
                state is None
                or node.target is not state.target
                or node.args is not state.args
                or node.kwargs.keys() != state.kwargs.keys()
            ):
                yield node

    def restore(self) -> None:
        """Make the graph what it was. Nodes that a pass erased come back as new nodes of the same name."""
        graph = self._graph
        alive = set(graph.nodes)
        with graph.inserting_after():
            back = {
                state.node: state.node if state.node in alive else self._remake(state)
                for state in self._states
            }
        added = alive - set(back)
        for node in added:
            node.args, node.kwargs = (), {}
        for state in self._states:
            self._reset(back[state.node], state, back)
        for node in added:
            graph.erase_node(node)
        self._relink([back[state.node] for state in self._states])

    def _remake(self, state: _NodeState) -> fx.Node:
        return self._graph.create_node(state.op, state.target, (), {}, state.name, state.type)

    def _reset(self, node: fx.Node, state: _NodeState, back: dict[fx.Node, fx.Node]) -> None:
        for name, value in (
            ("op", state.op),
            ("target", state.target),
            ("name", state.name),
            ("type", state.type),
        ):
            if getattr(node, name) is not value:
                setattr(node, name, value)
        node.args = fx.map_arg(state.args, back.__getitem__)
        node.kwargs = fx.map_arg(state.kwargs, back.__getitem__)
        node.meta = dict(state.meta)

    def _relink(self, order: list[fx.Node]) -> None:
        for earlier, later in itertools.pairwise(order):
            if earlier.next is not later:
                earlier.append(later)


def order_problem(graph: fx.Graph) -> str | None:
    """What FX itself finds wrong with a graph; None if nothing."""
    try:
        graph.lint()
    except Exception as error:  # noqa: BLE001 - lint fails in its own ways on graphs that are broken enough
        # The message ends with the whole graph.
        return str(error).partition("\n")[0]
    outputs = [node for node in graph.nodes if node.op == "output"]
    if len(outputs) != 1 or next(iter(reversed(graph.nodes))) is not outputs[0]:
        return f"it has {len(outputs)} output nodes, and must have one, at the end"
    return None


def _placeholders(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "placeholder"]


def _outputs(graph: fx.Graph) -> str:
    return next((_structure(node.args[0]) for node in graph.nodes if node.op == "output"), "")


def _structure(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_structure, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_structure(item)}' for key, item in value.items())}}}"
    return "*"


def _list(names: list[str]) -> str:
    return ", ".join(names)
