"""Make a traced graph cuttable: no nested regions, no tuple that a cut could separate from its parts.

Every function changes the graph in place and keeps the order of its operations.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import Argument, map_arg

from torch_piecewise.torch_private.nodes import example_value
from torch_piecewise.torch_private.shapes import dim_text

_SIZE_ARITHMETIC = frozenset(
    (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg)
)


def normalize(graph_module: GraphModule) -> GraphModule:
    """Inline nested regions and bring each ``getitem`` to its producer; returns the same module."""
    changed = 0
    while inlined := inline_nested_regions(graph_module):
        changed += inlined
    changed += move_getitems_to_producers(graph_module)
    graph_module.graph.lint()
    if changed:  # writing a large graph's code takes as long as cutting it
        graph_module.recompile()
    return graph_module


def inline_nested_regions(graph_module: GraphModule) -> int:
    """Replace calls of sub-graphs by the sub-graphs' own nodes, one level; returns how many calls.

    Handles ``call_module`` of a ``GraphModule`` and ``invoke_subgraph`` (what
    ``torch.compiler.nested_compile_region`` leaves in the graph). Nodes keep their metadata.
    """
    inlined = 0
    for node in list(graph_module.graph.nodes):
        body, operands = _nested_call(graph_module, node)
        if body is not None:
            _inline(graph_module, node, body, operands)
            inlined += 1
    if inlined:
        _drop_unused_attributes(graph_module)
    return inlined


def _nested_call(graph_module: GraphModule, node: Node) -> tuple[GraphModule | None, tuple[Argument, ...]]:
    if node.op == "call_module":
        body = graph_module.get_submodule(str(node.target))
        return (body, node.args) if isinstance(body, GraphModule) and not node.kwargs else (None, ())
    if node.op != "call_function" or node.target is not torch.ops.higher_order.invoke_subgraph:
        return None, ()
    subgraph, _identifier, *operands = node.args
    if not isinstance(subgraph, Node) or subgraph.op != "get_attr":
        return None, ()
    body = _attribute(graph_module, str(subgraph.target))
    return (body, tuple(operands)) if isinstance(body, GraphModule) else (None, ())


def _inline(outer: GraphModule, call: Node, body: GraphModule, operands: tuple[Argument, ...]) -> None:
    graph = outer.graph
    copies: dict[Node, Argument] = {}
    waiting = iter(operands)
    result: Argument = None
    with graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(waiting)
            elif node.op == "output":
                result = map_arg(node.args[0], lambda inner: copies[inner])
            elif node.op == "get_attr":
                name = _adopt(outer, f"{call.name}_{node.target}", _attribute(body, str(node.target)))
                copies[node] = graph.create_node("get_attr", name)
            else:
                copies[node] = copy_node(graph, node, lambda inner: copies[inner])
    _replace_result(graph_module=outer, call=call, result=result)


def copy_node(graph: torch.fx.Graph, node: Node, mapped: Callable[[Node], Argument]) -> Node:
    """Copy ``node`` to the insertion point of ``graph``, its operands through ``mapped``."""
    copy = graph.create_node(
        node.op,
        node.target,
        map_arg(node.args, mapped),
        map_arg(node.kwargs, mapped),
        node.name,
        node.type,
    )
    copy.meta = dict(node.meta)
    return copy


def _replace_result(graph_module: GraphModule, call: Node, result: Argument) -> None:
    if isinstance(result, Node):
        call.replace_all_uses_with(result)
    else:
        parts = result if isinstance(result, tuple | list) else (result,)
        for user in list(call.users):
            index = user.args[1] if is_getitem(user) else None
            if type(index) is int:
                replace_uses(user, parts[index])
                graph_module.graph.erase_node(user)
        if call.users:
            replace_uses(call, tuple(parts))
    graph_module.graph.erase_node(call)


def replace_uses(node: Node, value: Any) -> None:
    """Put ``value`` (a node, a constant or a structure of those) wherever ``node`` is used."""
    if isinstance(value, Node):
        node.replace_all_uses_with(value)
        return
    for user in list(node.users):
        user.args = _substitute(user.args, node, value)
        user.kwargs = _substitute(user.kwargs, node, value)


def _substitute(arg: Any, old: Node, new: Any) -> Any:
    if arg is old:
        return new
    if isinstance(arg, tuple | list):
        return type(arg)(_substitute(item, old, new) for item in arg)
    if isinstance(arg, Mapping):
        return {key: _substitute(item, old, new) for key, item in arg.items()}
    if isinstance(arg, slice):
        return slice(*(_substitute(part, old, new) for part in (arg.start, arg.stop, arg.step)))
    return arg


def _attribute(module: torch.nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _adopt(module: GraphModule, wanted: str, value: Any) -> str:
    name = wanted.replace(".", "_")
    while hasattr(module, name) and getattr(module, name) is not value:
        name += "_"
    setattr(module, name, value)
    return name


def _drop_unused_attributes(graph_module: GraphModule) -> None:
    graph = graph_module.graph
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    graph_module.delete_all_unused_submodules()


def move_getitems_to_producers(graph_module: GraphModule) -> int:
    """Place every ``getitem`` directly behind the node it takes from, so that no tuple is cut off.

    Returns how many were moved.
    """
    moved = 0
    for node in list(graph_module.graph.nodes):
        if not is_getitem(node) or not isinstance(node.args[0], Node):
            continue
        if not isinstance(node.args[1], int | str):
            continue  # indexing a tensor, or an index computed later
        if isinstance(example_value(node.args[0]), torch.Tensor):
            continue
        anchor = node.args[0]
        while is_getitem(anchor.next) and anchor.next.args[0] is node.args[0] and anchor.next is not node:
            anchor = anchor.next
        if anchor.op != "placeholder" and anchor.next is not node:
            anchor.append(node)
            moved += 1
    return moved


def is_getitem(node: Node) -> bool:
    """Whether ``node`` is ``operator.getitem(...)``."""
    return node.op == "call_function" and node.target is operator.getitem


def expand_size_tuples(graph_module: GraphModule, crosses: Callable[[Node], bool]) -> int:
    """Replace each ``x.size()`` for which ``crosses`` holds by one number or ``sym_size`` per dim.

    ``x.size(dim)`` is left alone. Returns how many were replaced.
    """
    replaced = 0
    for node in list(graph_module.graph.nodes):
        if not _is_size_tuple(node) or not crosses(node):
            continue
        dims = _dims_of(graph_module, node)
        if dims is None:
            continue
        for user in list(node.users):
            index = user.args[1] if is_getitem(user) else None
            if isinstance(index, slice) or type(index) is int:
                replace_uses(user, dims[index])
                graph_module.graph.erase_node(user)
        replace_uses(node, dims)
        graph_module.graph.erase_node(node)
        replaced += 1
    return replaced


def repeat_size_arithmetic(
    graph_module: GraphModule, piece_of: Mapping[Node, int], cuts: Collection[int]
) -> int:
    """Compute ``a * b`` and the like, over sizes, in each piece that needs the result.

    Dynamo computes an expression over sizes once, where it first occurs. Handed from there to later pieces,
    it would be an input that the first of otherwise equal pieces lacks. Returns how many copies were made.

    Args:
        piece_of: operation -> the piece it is in.
        cuts: pieces that hold cuts; these take results as inputs.
    """
    places = dict(piece_of)
    made = 0
    for node in reversed(list(graph_module.graph.nodes)):
        if not _is_size_arithmetic(node):
            continue
        copies: dict[int, Node] = {}
        users = _in_order(graph_module, node.users)
        if users and places.get(users[0]) == places[node]:
            users[0].prepend(node)  # where a copy stands too, so that pieces with and without are alike
        for user in users:
            piece = places.get(user)
            if piece is None or piece == places[node] or piece in cuts:
                continue
            if piece not in copies:
                with graph_module.graph.inserting_before(user):
                    copies[piece] = copy_node(graph_module.graph, node, lambda operand: operand)
                places[copies[piece]] = piece
                made += 1
            user.replace_input_with(node, copies[piece])
        if not node.users:
            graph_module.graph.erase_node(node)
    return made


def _in_order(graph_module: GraphModule, nodes: Iterable[Node]) -> list[Node]:
    wanted = set(nodes)
    return [node for node in graph_module.graph.nodes if node in wanted]


def _is_size_arithmetic(node: Node) -> bool:
    if node.op != "call_function" or node.target not in _SIZE_ARITHMETIC:
        return False
    return isinstance(example_value(node), int | torch.SymInt)


def _is_size_tuple(node: Node) -> bool:
    if node.op == "call_method" and node.target == "size":
        return len(node.args) == 1 and not node.kwargs
    is_shape = node.op == "call_function" and node.target is getattr and node.args[1:] == ("shape",)
    return is_shape or (node.op == "call_function" and node.target is torch.ops.aten.sym_size.default)


def _dims_of(graph_module: GraphModule, node: Node) -> tuple[Any, ...] | None:
    tensor = node.args[0]
    fake = example_value(tensor) if isinstance(tensor, Node) else None
    if not isinstance(tensor, Node) or not isinstance(fake, torch.Tensor):
        return None
    dims: list[Any] = []
    with graph_module.graph.inserting_before(node):
        for index, size in enumerate(fake.shape):
            number = dim_text(size)
            if isinstance(number, int):
                dims.append(number)
                continue
            dim = graph_module.graph.call_function(torch.ops.aten.sym_size.int, (tensor, index))
            dim.meta.update({k: v for k, v in node.meta.items() if k not in ("example_value", "val")})
            dim.meta["example_value"] = size
            dims.append(dim)
    return tuple(dims)
