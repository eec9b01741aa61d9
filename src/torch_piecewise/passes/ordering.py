"""Puts the nodes of a graph in an order in which every value is defined before its use."""

from __future__ import annotations

import heapq
import itertools

from torch import fx

from torch_piecewise.errors import PassError
from torch_piecewise.passes.effects import Aliases, is_removable, written_inputs


def stable_topological_sort(graph: fx.Graph) -> int:
    """Sort ``graph`` in place; nodes that need not move stay in their order.

    What can be observed keeps its order: nodes with effects among themselves, and each node that writes to
    memory against every node that touches that memory.

    Returns:
        How many nodes moved.

    Raises:
        PassError: a value depends on itself, or only by reordering a write could it be defined in time.
    """
    nodes = list(graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    # A node of another graph has no place here; telling of it is lint's work.
    if all(place.get(source, -1) < place[node] for node in nodes for source in node.all_input_nodes):
        return 0
    order = _sorted(nodes, place, _before(graph, nodes))
    _relink(graph, order)
    return sum(node is not old for node, old in zip(order, nodes, strict=True))


def _before(graph: fx.Graph, nodes: list[fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """Node -> the nodes that must come before it."""
    inside = set(nodes)
    before = {node: inside.intersection(node.all_input_nodes) for node in nodes}
    effects = [node for node in nodes if node.op.startswith("call") and not is_removable(node)]
    for earlier, later in itertools.pairwise(effects):
        before[later].add(earlier)
    aliases = Aliases(graph)
    touched = {node: {aliases.key(item) for item in (node, *node.all_input_nodes)} for node in nodes}
    place = {node: index for index, node in enumerate(nodes)}
    for writer in effects:
        written = {aliases.key(item) for item in written_inputs(writer)}
        for node in nodes:
            if node.op.startswith("call") and node is not writer and touched[node] & written:
                first, second = sorted((node, writer), key=place.__getitem__)
                before[second].add(first)
    _keep_ends(nodes, before)
    return before


def _keep_ends(nodes: list[fx.Node], before: dict[fx.Node, set[fx.Node]]) -> None:
    # Placeholders first, in their order; the output last.
    placeholders = [node for node in nodes if node.op == "placeholder"]
    for earlier, later in itertools.pairwise(placeholders):
        before[later].add(earlier)
    for node in nodes:
        if node.op == "output":
            before[node].update(other for other in nodes if other is not node)
        elif node.op != "placeholder" and placeholders:
            before[node].add(placeholders[-1])


def _sorted(
    nodes: list[fx.Node], place: dict[fx.Node, int], before: dict[fx.Node, set[fx.Node]]
) -> list[fx.Node]:
    waiting = {node: len(before[node]) for node in nodes}
    after: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    for node, earlier in before.items():
        for other in earlier:
            after[other].append(node)
    ready = [place[node] for node in nodes if not waiting[node]]
    order: list[fx.Node] = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        order.append(node)
        for other in after[node]:
            waiting[other] -= 1
            if not waiting[other]:
                heapq.heappush(ready, place[other])
    if len(order) < len(nodes):
        stuck = [node.name for node in nodes if waiting[node]]
        raise PassError(
            "The graph cannot be put in order",
            expected="no value that depends on itself, and no write that would have to move",
            got=f"nodes that wait for each other: {', '.join(stuck)}",
            hint="insert new nodes right before their first user",
        )
    return order


def _relink(graph: fx.Graph, order: list[fx.Node]) -> None:
    last = order[0]
    first = next(iter(graph.nodes))
    if last is not first:
        first.prepend(last)
    for node in order[1:]:
        if last.next is not node:
            last.append(node)
        last = node
