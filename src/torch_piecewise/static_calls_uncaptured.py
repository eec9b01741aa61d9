"""Calls of programs that nothing can be captured of: served as they are, counted."""

from __future__ import annotations

import threading
from typing import Any

from torch_piecewise.program import Program
from torch_piecewise.stitching import Runner


class Uncaptured:
    """Why nothing is captured of some programs, and how often they were called. Safe to use from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls = 0
        self.reasons: tuple[str, ...] = ()

    def tell(self, reason: str) -> None:
        """Nothing is captured, since ``reason``; said once."""
        if reason not in self.reasons:
            self.reasons = (*self.reasons, reason)

    def serve(self, program: Program, reason: str) -> None:
        """Count the calls of ``program``, of which nothing is captured."""
        self.tell(reason)
        program.serve_through(lambda _key, plain: self._counted(plain), lambda: None)

    def _counted(self, plain: Runner) -> Runner:
        def call(*args: Any) -> tuple[Any, ...]:
            with self._lock:
                self.calls += 1
            result: tuple[Any, ...] = plain(*args)
            return result

        return call
