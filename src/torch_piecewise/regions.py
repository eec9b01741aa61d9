"""Autocast and grad-mode regions that a cut runs through.

Dynamo writes ``with torch.autocast(...)`` and ``with torch.no_grad()`` as a pair of calls that change a
state. A piece that holds only one of the pair would change the state of everything after it, so each
piece re-enters what is open where it begins and leaves it where it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

_ENTER = torch.amp.autocast_mode._enter_autocast
_EXIT = torch.amp.autocast_mode._exit_autocast
_SET_GRAD = torch._C._set_grad_enabled


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
        if node.target is _ENTER:
            return OpenRegions((*self.autocast, node), self.grad_enabled)
        if node.target is _EXIT:
            return OpenRegions(tuple(n for n in self.autocast if n is not node.args[0]), self.grad_enabled)
        if node.target is _SET_GRAD:
            return OpenRegions(self.autocast, bool(node.args[0]))
        return self

    def enter(self, graph: Graph) -> dict[Node, Node]:
        """Append to ``graph`` what opens these regions; returns the enter calls made, by original."""
        made = {node: graph.call_function(_ENTER, node.args) for node in self.autocast}
        if self.grad_enabled is not None:
            graph.call_function(_SET_GRAD, (self.grad_enabled,))
        return made

    def leave(self, graph: Graph, entered: Callable[[Node], Node], grad_before: bool | None) -> None:
        """Append to ``graph`` what closes these regions; ``entered`` finds a region's enter call."""
        for node in reversed(self.autocast):
            graph.call_function(_EXIT, (entered(node),))
        if self.grad_enabled is not None and grad_before is not None:
            graph.call_function(_SET_GRAD, (grad_before,))


def is_region_call(node: Node) -> bool:
    """Whether ``node`` enters or leaves a region."""
    return node.op == "call_function" and node.target in (_ENTER, _EXIT, _SET_GRAD)
