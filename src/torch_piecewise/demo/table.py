"""The table at the end of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.table import Table

from torch_piecewise.demo.engine import Facts
from torch_piecewise.demo.generate import Generation, first_difference


@dataclass(frozen=True)
class Run:
    """One way of running the model.

    Attributes:
        name: as the table shows it.
        setup_seconds: spent before the first token was asked for.
    """

    name: str
    generation: Generation
    setup_seconds: float = 0.0

    @property
    def start_seconds(self) -> float:
        """From loaded weights to the second token, so that compiling for prefill and decode is in it."""
        return self.setup_seconds + sum(self.generation.seconds[:2])


def print_table(facts: Facts, compiled: Run, others: Sequence[Run], *, out: TextIO) -> None:
    """Print what was compiled, and how all runs went.

    Args:
        compiled: the run whose tokens the others are compared with.
    """
    # Without a terminal there is no width to fit: a line broken in a log file helps nobody.
    console = Console(file=out, width=None if out.isatty() else 100)
    console.print(
        f"{facts.pieces} pieces, {facts.distinct_pieces} distinct, compiled in {facts.compile_seconds:.1f} s",
        highlight=False,
    )
    table = Table("greedy decode, float32")
    for column in ("start, s", "tokens/s", "same tokens"):
        table.add_column(column, justify="right")
    for run in (*others, compiled):
        speed = run.generation.tokens_per_second
        table.add_row(
            run.name,
            f"{run.start_seconds:.1f}",
            "" if speed is None else f"{speed:.1f}",
            "" if run is compiled else _same(run.generation, compiled.generation),
        )
    console.print(table)


def _same(one: Generation, other: Generation) -> str:
    index = first_difference(one.tokens, other.tokens)
    return "yes" if index is None else f"NO, from token {index + 1}"
