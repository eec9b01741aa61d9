"""Autocast and grad-mode regions that a cut runs through.

Dynamo writes ``with torch.autocast(...)`` and ``with torch.no_grad()`` as a pair of calls that change a
state. A piece that holds only one of the pair would change the state of everything after it, so each
piece re-enters what is open where it begins and leaves it where it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import Graph, Node

from torch_piecewise.torch_private.ops import ENTER_AUTOCAST, EXIT_AUTOCAST, SET_GRAD_ENABLED


@dataclass(frozen=True)
class OpenRegions:
    """What is open between two nodes.

    Attributes:
        autocast: the enter calls not yet left, outermost first.
        grad_enabled: the last grad mode that the graph set itself, None while it set none.
    """

    autocast: tuple[Node, ...] = ()
    grad_enabled: bool | None = None

    def after(self, node: Node) -> OpenRegions:
        """What is open once ``node`` has run."""
        if node.op != "call_function":
            return self
        if node.target is ENTER_AUTOCAST:
            return OpenRegions((*self.autocast, node), self.grad_enabled)
        if node.target is EXIT_AUTOCAST:
            return OpenRegions(tuple(n for n in self.autocast if n is not node.args[0]), self.grad_enabled)
        if node.target is SET_GRAD_ENABLED:
            return OpenRegions(self.autocast, bool(node.args[0]))
        return self

    def enter(self, graph: Graph) -> dict[Node, Node]:
        """Append to ``graph`` what opens these regions; returns the enter calls made, by original."""
        made = {node: graph.call_function(ENTER_AUTOCAST, node.args) for node in self.autocast}
        if self.grad_enabled is not None:
            graph.call_function(SET_GRAD_ENABLED, (self.grad_enabled,))
        return made

    def leave(self, graph: Graph, entered: Callable[[Node], Node], grad_before: bool | None) -> None:
        """Append to ``graph`` what closes these regions; ``entered`` finds a region's enter call."""
        for node in reversed(self.autocast):
            graph.call_function(EXIT_AUTOCAST, (entered(node),))
        if self.grad_enabled is not None and grad_before is not None:
            graph.call_function(SET_GRAD_ENABLED, (grad_before,))
