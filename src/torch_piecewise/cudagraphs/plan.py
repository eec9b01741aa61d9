"""A whole call as a flat list of things to do, on fixed memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch_piecewise.cudagraphs.base import StaticGraph


@dataclass(frozen=True)
class ReplayPlan:
    """What one captured call does: replays and eager bodies in order, with no arguments in between.

    Attributes:
        steps: called one after the other, without arguments; their results are ignored.
        graphs: the static graphs among the steps; owned by this plan.
        outputs: what the captured call returned. Its tensors lie on fixed memory, filled by each replay.
        kept: the compiled code that the graphs were recorded from: device code may go when it goes.
    """

    steps: tuple[Callable[[], object], ...]
    graphs: tuple[StaticGraph, ...]
    outputs: Any
    kept: tuple[Any, ...] = ()

    def replay(self) -> None:
        """Do everything once."""
        for step in self.steps:
            step()

    def reset(self) -> None:
        """Give the graphs up; the plan cannot be replayed afterwards."""
        for graph in self.graphs:
            graph.reset()
