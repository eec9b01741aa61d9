"""Cut a graph into pieces, in the original order, so that each cut op runs between compiled code."""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from torch_piecewise.cut_policy import CutPolicy, SplittingOp
from torch_piecewise.errors import SplitError
from torch_piecewise.normalize import (
    copy_node,
    expand_size_tuples,
    is_getitem,
    normalize,
    repeat_size_arithmetic,
)
from torch_piecewise.regions import OpenRegions
from torch_piecewise.torch_private.nodes import example_value, graph_module
from torch_piecewise.torch_private.ops import op_base_name
from torch_piecewise.torch_private.shapes import dim_text, symbol_names

logger = logging.getLogger("torch_piecewise")

_ALLOCATIONS = frozenset(
    (
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "empty_permuted",
        "new_empty_permuted",
    )
)


@dataclass(frozen=True)
class SplitItem:
    """One piece of a split graph.

    Attributes:
        submod_name: its name in the split module, ``submod_N``.
        graph_id: N.
        is_splitting_graph: whether it holds cut ops and therefore runs eagerly.
        graph: the piece; returns a tuple.
    """

    submod_name: str
    graph_id: int
    is_splitting_graph: bool
    graph: GraphModule


@dataclass(frozen=True)
class SplitPlan:
    """A cut graph.

    Attributes:
        module: calls the pieces in order; the same inputs and outputs as the graph that was cut.
        items: the pieces, by id.
        warnings: splitting ops that never occur.
    """

    module: GraphModule
    items: tuple[SplitItem, ...]
    warnings: tuple[str, ...] = ()


def split_graph(
    graph: GraphModule, splitting_ops: Sequence[SplittingOp] | None
) -> tuple[GraphModule, list[SplitItem]]:
    """Cut ``graph`` at ``splitting_ops``.

    Each matching op goes to a piece of its own; directly consecutive ones share a piece. Mutation stays
    correct because the order of the operations is kept.

    Args:
        graph: a Dynamo, ATen or plain FX graph; normalised in place.
        splitting_ops: as ``Config.splitting_ops``; None = the attention ops torch knows, ``[]`` = no cut.

    Returns:
        The module that calls the pieces, and the pieces by id.

    Raises:
        SplitError: ``graph`` is none, a splitting op does not exist, or a predicate failed. An op that exists
            and never occurs is a warning in the log.
    """
    plan = plan_split(graph, CutPolicy.of(splitting_ops))
    for warning in plan.warnings:
        logger.warning("%s", warning)
    return plan.module, list(plan.items)


def plan_split(graph: GraphModule, policy: CutPolicy) -> SplitPlan:
    """Cut ``graph`` where ``policy`` says; see :func:`split_graph`."""
    if not isinstance(graph, GraphModule):
        raise SplitError(
            "There is no graph to cut",
            expected="a torch.fx.GraphModule: what Dynamo hands a backend, torch.export, or make_fx made",
            got=type(graph).__name__,
            hint="trace the model first; tp.compile(model) does so",
        )
    normalize(graph)
    warnings = tuple(policy.unmatched(graph.graph))
    assignment = _assign(graph.graph, policy)
    if expand_size_tuples(graph, lambda node: _crosses(node, assignment.piece_of)):
        assignment = _assign(graph.graph, policy)
    if repeat_size_arithmetic(graph, assignment.piece_of, assignment.cuts):
        assignment = _assign(graph.graph, policy)
    assignment = _merge_allocations(assignment)
    module, items = _build(graph, assignment)
    return SplitPlan(module, items, warnings)


@dataclass(frozen=True)
class _Assignment:
    """Which piece each node belongs to.

    Attributes:
        piece_of: operation node -> piece id, ids rising along the graph.
        cuts: ids of pieces that hold cut ops.
    """

    piece_of: dict[Node, int]
    cuts: frozenset[int]

    def nodes_by_piece(self) -> dict[int, list[Node]]:
        pieces: dict[int, list[Node]] = {}
        for node, piece in self.piece_of.items():
            pieces.setdefault(piece, []).append(node)
        return pieces


def _assign(graph: Graph, policy: CutPolicy) -> _Assignment:
    piece_of: dict[Node, int] = {}
    cuts: set[int] = set()
    current = -1
    previous_was_cut: bool | None = None
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        producer = _taken_from(node)
        if producer in piece_of:
            piece_of[node] = piece_of[producer]
            continue
        is_cut = policy.cut(node) is not None
        if is_cut != previous_was_cut:
            current += 1
            previous_was_cut = is_cut
        if is_cut:
            cuts.add(current)
        piece_of[node] = current
    return _Assignment(piece_of, frozenset(cuts))


def _taken_from(node: Node) -> Node | None:
    """The node with several results that ``node`` takes one from; None if it does something else."""
    if not is_getitem(node) or not isinstance(node.args[1], int | str):
        return None
    producer = node.args[0]
    if not isinstance(producer, Node) or isinstance(example_value(producer), torch.Tensor):
        return None
    return producer


def _crosses(node: Node, piece_of: dict[Node, int]) -> bool:
    own = piece_of.get(node)
    for user in node.users:
        if piece_of.get(user, -1) != own:
            return True
        if is_getitem(user) and any(piece_of.get(last, -1) != own for last in user.users):
            return True
    return False


def _merge_allocations(assignment: _Assignment) -> _Assignment:
    """Let a piece that only allocates join the piece before it.

    Its inputs always allow that here: everything it reads was computed earlier, in the graph's own order.
    """
    pieces = assignment.nodes_by_piece()
    target: dict[int, int] = {}
    for piece in sorted(pieces):
        joins = piece > 0 and piece not in assignment.cuts and all(map(_only_allocates, pieces[piece]))
        target[piece] = target[piece - 1] if joins else piece
    renumbered = {old: new for new, old in enumerate(sorted(set(target.values())))}
    return _Assignment(
        {node: renumbered[target[piece]] for node, piece in assignment.piece_of.items()},
        frozenset(renumbered[target[piece]] for piece in assignment.cuts),
    )


def _only_allocates(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in _ALLOCATIONS
    if node.op != "call_function":
        return False
    if node.target in (torch.ops.aten.sym_size.int, operator.getitem) or node.target is getattr:
        return not isinstance(example_value(node), torch.Tensor)
    op = op_base_name(node.target)
    if op is not None:
        return op.startswith("aten::") and op.removeprefix("aten::") in _ALLOCATIONS
    return getattr(node.target, "__name__", None) in _ALLOCATIONS


# --------------------------------------------------------------------------------------------------


def _build(graph: GraphModule, assignment: _Assignment) -> tuple[GraphModule, tuple[SplitItem, ...]]:
    builder = _Builder(graph, assignment)
    items = tuple(builder.add_piece(piece) for piece in sorted(assignment.nodes_by_piece()))
    return builder.finish(), items


class _Builder:
    """Writes the calling graph and the pieces' graphs, one piece after the other."""

    def __init__(self, source: GraphModule, assignment: _Assignment) -> None:
        self.source = source
        self.assignment = assignment
        self.pieces = assignment.nodes_by_piece()
        self.outer = Graph()
        self.root = torch.nn.Module()
        self.outer_values: dict[Node, Node] = {}
        self.symbols: dict[str, Node] = {}
        self.open = OpenRegions()
        self.grad_enabled = torch.is_grad_enabled()
        for node in source.graph.nodes:
            if node.op == "placeholder":
                self.outer_values[node] = copy_node(self.outer, node, lambda n: n)
                name = symbol_names(example_value(node)) if _is_size(node) else frozenset()
                self.symbols.update(dict.fromkeys(name, node))

    def add_piece(self, index: int) -> SplitItem:
        """Write piece ``index`` and its call."""
        nodes = self.pieces[index]
        inputs = self._inputs(nodes)
        outputs = self._outputs(nodes, index)
        module = self._piece_module(nodes, inputs, outputs, f"submod_{index}")
        name = f"submod_{index}"
        self.root.add_module(name, module)
        call = self.outer.call_module(name, tuple(self._outer_value(node) for node in inputs))
        call.meta["example_value"] = tuple(example_value(node) for node in outputs)
        for position, node in enumerate(outputs):
            part = self.outer.create_node("call_function", operator.getitem, (call, position), name=node.name)
            part.meta.update(node.meta)
            self.outer_values[node] = part
        return SplitItem(name, index, index in self.assignment.cuts, module)

    def finish(self) -> GraphModule:
        """The module that calls all pieces."""
        output = next(iter(reversed(self.source.graph.nodes)))
        result = self.outer.output(map_arg(output.args[0], self._outer_value))
        result.meta.update(output.meta)
        self.outer.lint()
        module = graph_module(self.root, self.outer)
        module.meta.update(self.source.meta)
        return module

    def _outer_value(self, node: Node) -> Node:
        if node.op == "get_attr" and node not in self.outer_values:
            _share_attribute(self.source, self.root, str(node.target))
            self.outer_values[node] = copy_node(self.outer, node, lambda n: n)
        return self.outer_values[node]

    def _inputs(self, nodes: list[Node]) -> list[Node]:
        own = set(nodes)
        found: dict[Node, None] = {}
        for node in nodes:
            for operand in node.all_input_nodes:
                if operand not in own and operand.op != "get_attr":
                    found.setdefault(operand)
        return [*found, *self._missing_symbols(list(found))]

    def _missing_symbols(self, inputs: list[Node]) -> list[Node]:
        """Size inputs that make every symbol in the inputs' shapes readable from some input.

        A dim that *is* a symbol tells it; a dim such as ``2*s0`` alone does not.
        """
        told: set[str] = set()
        mentioned: dict[str, None] = {}
        for node in inputs:
            value = example_value(node)
            mentioned.update(dict.fromkeys(sorted(symbol_names(value))))
            dims = value.shape if isinstance(value, torch.Tensor) else (value,)
            told |= {str(dim_text(dim)) for dim in dims if isinstance(dim, torch.SymInt)}
        return [self.symbols[name] for name in mentioned if name not in told and name in self.symbols]

    def _outputs(self, nodes: list[Node], index: int) -> list[Node]:
        piece_of = self.assignment.piece_of
        return [node for node in nodes if any(piece_of.get(user, -1) != index for user in node.users)]

    def _piece_module(
        self, nodes: list[Node], inputs: list[Node], outputs: list[Node], name: str
    ) -> GraphModule:
        graph = Graph()
        root = torch.nn.Module()
        copies: dict[Node, Node] = {}
        for node in inputs:
            copies[node] = graph.placeholder(node.name)
            copies[node].meta.update(node.meta)
        for original, made in self.open.enter(graph).items():
            copies[original] = made

        def copied(node: Node) -> Node:
            if node not in copies:  # a constant of the whole graph: each piece holds its own reference
                _share_attribute(self.source, root, str(node.target))
                copies[node] = graph.get_attr(str(node.target))
                copies[node].meta.update(node.meta)
            return copies[node]

        for node in nodes:
            for operand in node.all_input_nodes:
                copied(operand)  # constants first: they must stand before their use
            if node.op == "call_module":
                _share_attribute(self.source, root, str(node.target))
            copies[node] = copy_node(graph, node, copied)
            # These name symbols of the trace; who traces the piece again makes symbols of its own.
            copies[node].meta.pop("unbacked_bindings", None)
            self.open = self.open.after(node)
        self.open.leave(graph, copied, self.grad_enabled)
        results = tuple(copies[node] for node in outputs)
        graph.output(results)
        graph.lint()
        return graph_module(root, graph, name)


def _is_size(node: Node) -> bool:
    return isinstance(example_value(node), torch.SymInt)


def _share_attribute(source: torch.nn.Module, target: torch.nn.Module, path: str) -> None:
    """Make ``source.path`` reachable as ``target.path``, the object itself."""
    *folders, name = path.split(".")
    for folder in folders:
        source = getattr(source, folder)
        if not hasattr(target, folder):
            target.add_module(folder, torch.nn.Module())
        target = getattr(target, folder)
    value = getattr(source, name)
    if isinstance(value, torch.nn.Parameter | torch.nn.Module) or not isinstance(value, torch.Tensor):
        setattr(target, name, value)
    elif not hasattr(target, name):
        target.register_buffer(name, value, persistent=False)
