"""Distinct pieces x ranges, compiled one after the other or on worker processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch_piecewise.compilers.base import Compiler, CompileOptions
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range


@dataclass(frozen=True)
class CompileTask:
    """One call of a compiler."""

    compiler: Compiler
    piece: Piece
    range: Range
    options: CompileOptions

    def run(self) -> tuple[Any, float]:
        """The artifact, or the exception it ended with, and the seconds it took."""
        start = time.monotonic()
        try:
            result: Any = self.compiler.compile(self.piece, self.range, self.options)
        except Exception as error:  # reported by the manager, which knows the policy
            result = error
        return result, time.monotonic() - start


class CompilePool:
    """Runs compile tasks.

    Args:
        on_progress: called with (done, total) after each task.
    """

    def __init__(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        self._on_progress = on_progress

    def run(self, tasks: Sequence[CompileTask]) -> list[tuple[Any, float]]:
        """Run all tasks; outcomes in the order of ``tasks``."""
        outcomes = []
        for done, task in enumerate(tasks, start=1):
            outcomes.append(task.run())
            if self._on_progress is not None:
                self._on_progress(done, len(tasks))
        return outcomes
