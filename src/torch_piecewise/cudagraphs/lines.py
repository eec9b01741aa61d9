"""A call's steps as one callable, each marked with what it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch_piecewise.cudagraphs.base import Value
from torch_piecewise.cudagraphs.breakable import cut_step, opaque_call


def straight_line(
    steps: Sequence[tuple[Literal["piece", "eager"], Callable[..., Any]]],
) -> Callable[..., Any]:
    """A line of steps, each of which takes what the one before returned (a tuple: as several arguments)."""
    marked = [opaque_call(fn) if kind == "piece" else cut_step(fn) for kind, fn in steps]

    def line(*args: Value) -> Value:
        value: Value = args
        for step in marked:
            value = step(*value) if isinstance(value, tuple) else step(value)
        return value

    return line
