"""What every run of passes ends with: nodes in order, and none that nobody needs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from torch_piecewise.passes.base import GraphPass
from torch_piecewise.passes.effects import is_removable
from torch_piecewise.passes.ordering import stable_topological_sort


@dataclass(frozen=True)
class CleanUp(GraphPass):
    """Sorts the graph and removes dead nodes.

    Only what is known to be without effect is removed: a node that writes to memory, draws random numbers,
    asserts, talks to other processes, or cannot be looked into stays, whether its value is used or not.
    """

    def __call__(self, graph: fx.Graph) -> int:
        stable_topological_sort(graph)
        removed = 0
        for node in reversed(graph.nodes):
            if not node.users and is_removable(node):
                graph.erase_node(node)
                removed += 1
        return removed
