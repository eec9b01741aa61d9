"""Which nodes write, to what, and which values may share memory. Says yes where it cannot tell."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from torch_piecewise.torch_private.passes import (
    HigherOrderOperator,
    alias_sets,
    is_overload,
    schema_of,
    storage_key,
    writes,
)

_aten = torch.ops.aten

# Pure by construction: they clone what they write, and give back fresh tensors.
FUNCTIONALIZED = (
    torch.ops.higher_order.auto_functionalized,
    torch.ops.higher_order.auto_functionalized_v2,
)
# They look at sizes, never at memory.
_SIZE_ONLY = frozenset(
    {
        _aten.sym_size.int,
        _aten.sym_stride.int,
        _aten.sym_numel.default,
        _aten.sym_storage_offset.default,
    }
)
# Views whose schema claims a fresh tensor.
_HIDDEN_VIEWS = frozenset({_aten._unsafe_view.default})
# Their functional forms talk to other processes, so a call without a reader is still a call.
_COLLECTIVES = frozenset(
    {"_c10d_functional", "c10d_functional", "c10d", "_c10d_functional_autograd", "symm_mem"}
)
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)


def reads_sizes_only(node: fx.Node) -> bool:
    """Whether the node looks at the sizes of its inputs and not at their memory."""
    return node.op == "call_function" and node.target in _SIZE_ONLY


def is_removable(node: fx.Node) -> bool:
    """Whether nobody can tell that the node did not run, given that nobody reads its value.

    True only for what is known: attribute reads, scalar arithmetic, and operators that by their schema
    write nothing, return something, draw no random numbers, and are not registered as having an effect.
    """
    if node.op == "get_attr":
        return True
    # A data-dependent size is named in other nodes' shapes without an edge to the node that made it.
    if node.op != "call_function" or node.meta.get("unbacked_bindings"):
        return False
    if node.target in FUNCTIONALIZED:
        return not node.is_impure()
    if is_overload(node.target):
        return (
            bool(schema_of(node.target).returns)
            and node.target.namespace not in _COLLECTIVES
            and torch.Tag.nondeterministic_seeded not in node.target.tags
            and not node.is_impure(impure_random=True)
        )
    return _is_scalar_function(node)


def _is_scalar_function(node: fx.Node) -> bool:
    """Arithmetic on sizes: a function of Python's or torch's own that is given numbers only."""
    target: Any = node.target
    if target is operator.getitem:
        return True
    if isinstance(target, HigherOrderOperator) or not node.all_input_nodes:
        return False
    module, name = getattr(target, "__module__", None), getattr(target, "__name__", "")
    own = module in ("_operator", "math") or (module == "torch" and name.startswith("sym_"))
    return own and all(isinstance(source.meta.get("val"), _NUMBERS) for source in node.all_input_nodes)


def written_inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs that the node writes to; all of them where that is not known."""
    if node.op in ("placeholder", "get_attr", "output"):
        return []
    if node.op == "call_function" and is_overload(node.target):
        return [inner for argument, value in _given(node) if writes(argument) for inner in _nodes(value)]
    if node.target is operator.getitem or node.target in FUNCTIONALIZED or is_removable(node):
        return []
    return list(node.all_input_nodes)


def _given(node: fx.Node) -> list[tuple[torch.Argument, Any]]:
    """Each argument of the node's operator that the call gives, with what it gives."""
    arguments = schema_of(node.target).arguments if is_overload(node.target) else []
    named = [(argument, node.kwargs[argument.name]) for argument in arguments if argument.name in node.kwargs]
    return [*zip(arguments, node.args, strict=False), *named]


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Argument name -> what the call gives for it, or the schema's default; for operators with a schema."""
    arguments = schema_of(node.target).arguments if is_overload(node.target) else []
    defaults = {argument.name: argument.default_value for argument in arguments}
    return {**defaults, **{argument.name: value for argument, value in _given(node)}}


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


class Aliases:
    """Which values of a graph may share memory, as classes of nodes.

    Two nodes are in one class if their fake tensors have one storage, or if operators whose schema says so
    (or says nothing) lead from one to the other. Holds for the graph as it was when this was made.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._parent: dict[object, object] = {}
        for node in graph.nodes:
            self._add(node)
        self._members: dict[object, list[fx.Node]] = {}
        for node in graph.nodes:
            self._members.setdefault(self._root(node), []).append(node)

    def of(self, node: fx.Node) -> list[fx.Node]:
        """All nodes that may share memory with ``node``, itself included, in graph order."""
        return self._members[self._root(node)]

    def may_share(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether the two may share memory."""
        return self._root(one) == self._root(other)

    def key(self, node: fx.Node) -> object:
        """What all nodes of one class have in common, and no others."""
        return self._root(node)

    def _add(self, node: fx.Node) -> None:
        key = storage_key(node.meta.get("val"))
        if key is not None:
            self._join(node, ("storage", key))
        for source in _sources(node):
            self._join(node, source)

    def _root(self, item: object) -> object:
        root = item
        while (above := self._parent.get(root, root)) is not root:
            root = above
        self._parent[item] = root
        return root

    def _join(self, one: object, other: object) -> None:
        self._parent[self._root(one)] = self._root(other)


def _sources(node: fx.Node) -> list[object]:
    """What the node's value may share memory with."""
    if node.op in ("placeholder", "output") or reads_sizes_only(node) or node.target in FUNCTIONALIZED:
        return []
    if node.op == "get_attr":
        return [("attribute", node.target)]
    if node.target is operator.getitem:
        return _element(node)
    if node.op == "call_function" and is_overload(node.target):
        if node.target in _HIDDEN_VIEWS:
            return list(node.all_input_nodes)
        return _aliased(node)
    return [] if is_removable(node) else list(node.all_input_nodes)


def _aliased(node: fx.Node) -> list[object]:
    """The inputs that some result is an alias of, by the schema of the node's operator."""
    results = schema_of(node.target).returns if is_overload(node.target) else []
    returned = set().union(*(alias_sets(result) for result in results))
    if not returned:
        return []
    return [
        inner
        for argument, value in _given(node)
        if (own := alias_sets(argument)) and (own & returned or "*" in own | returned)
        for inner in _nodes(value)
    ]


def _element(node: fx.Node) -> list[object]:
    source, index = node.args
    if not isinstance(source, fx.Node):
        return []
    # Operators return several fresh tensors, which are apart; anything else is one with its elements.
    several = source.op == "call_function" and (source.target in FUNCTIONALIZED or is_overload(source.target))
    if several and not _sources(source):
        return [("element", source, index)]
    return [source]
