"""Compilers whose pieces are wrong or slow on purpose."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch_piecewise.artifact import Artifact, LiveArtifact
from torch_piecewise.compilers import CompileOptions
from torch_piecewise.compilers.eager import live_runnable
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range

Run = Callable[..., tuple[Any, ...]]
Concerns = Callable[[Piece, Range], bool]


class Changed:
    """The eager compiler with something changed in each piece that ``concerns`` it."""

    def __init__(
        self, name: str, change: Callable[[Run], Run], concerns: Callable[[Piece, Range], bool]
    ) -> None:
        self.name = name
        self._change = change
        self._concerns = concerns

    def fingerprint(self) -> str:
        return self.name

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        run: Run = piece.graph.forward
        if self._concerns(piece, range):
            run = self._change(run)
        return LiveArtifact(self.name, piece.name, range, runnable=run)

    def load(self, artifact: Artifact) -> Run:
        return live_runnable(artifact, self.name)


def off_by(amount: float) -> Callable[[Run], Run]:
    """The first output is off by ``amount``."""

    def change(run: Run) -> Run:
        def wrong(*inputs: Any) -> tuple[Any, ...]:
            first, *others = run(*inputs)
            return (first + amount, *others)

        return wrong

    return change


def slower_by(seconds: float) -> Callable[[Run], Run]:
    def change(run: Run) -> Run:
        def slow(*inputs: Any) -> tuple[Any, ...]:
            time.sleep(seconds)
            return run(*inputs)

        return slow

    return change


def forgets_writes(run: Run) -> Run:
    """What the piece changes in place stays as it was."""
    return lambda *inputs: run(*(value.clone() if hasattr(value, "clone") else value for value in inputs))


def fails(_run: Run) -> Run:
    def run(*_inputs: Any) -> tuple[Any, ...]:
        raise RuntimeError("no such kernel")

    return run


def large(piece: Piece, range: Range) -> bool:
    return range.start > 8


def is_last(piece: Piece, range: Range) -> bool:
    return piece.name == "submod_6"


def everything(piece: Piece, range: Range) -> bool:
    return True


wrong_for_large = Changed("wrong_for_large", off_by(0.01), large)
wrong_last = Changed("wrong_last", off_by(0.01), is_last)
barely_wrong_last = Changed("barely_wrong_last", off_by(1e-6), is_last)
slow_last = Changed("slow_last", slower_by(0.02), is_last)
failing_last = Changed("failing_last", fails, is_last)
forgetful = Changed("forgetful", forgets_writes, everything)
