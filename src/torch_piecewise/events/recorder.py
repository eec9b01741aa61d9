"""Remembers the events of one compiled model, for reports."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from torch_piecewise.events import Event

LIMIT = 20_000
"""Events that are remembered; the oldest go first. A start has a few for each distinct piece and range."""


@dataclass(frozen=True)
class Recorded:
    """One event, and which thread it happened on.

    Attributes:
        thread: ``threading.get_ident()`` of the thread that emitted it.
    """

    event: Event
    thread: int


class Recorder:
    """An observer that keeps the newest events. None is emitted while a compiled model just runs.

    Args:
        limit: how many are kept.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._recorded: deque[Recorded] = deque(maxlen=limit)

    def __call__(self, event: Event) -> None:
        self._recorded.append(Recorded(event, threading.get_ident()))

    def recorded(self) -> tuple[Recorded, ...]:
        """What was kept, oldest first."""
        return tuple(self._recorded)
