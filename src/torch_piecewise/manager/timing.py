"""How long a manager was at work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch_piecewise.events import Event, PieceCompiled, PieceLoaded


@dataclass(frozen=True)
class Timing:
    """From the first piece to the last.

    Attributes:
        is_encoder: whether the part of the model was declared an encoder; its time is to be counted apart.
        first: when work on the first piece began, on ``time.monotonic``'s clock; None before.
        last: when the last one so far was ready; None before.
        compiling: seconds inside the compiler, summed over processes that compiled at once.
        loading: seconds spent making artifacts callable.
    """

    is_encoder: bool = False
    first: float | None = None
    last: float | None = None
    compiling: float = 0.0
    loading: float = 0.0

    @property
    def seconds(self) -> float:
        """From the beginning of the first piece to the end of the last; 0 before."""
        return 0.0 if self.first is None or self.last is None else self.last - self.first


class Stopwatch:
    """An observer that adds up a manager's times. Its manager calls it in one thread at a time."""

    def __init__(self) -> None:
        self._timing = Timing()

    def timing(self, *, is_encoder: bool) -> Timing:
        """The times so far."""
        return replace(self._timing, is_encoder=is_encoder)

    def __call__(self, event: Event) -> None:
        timing = self._timing
        if isinstance(event, PieceCompiled):
            self._timing = replace(timing, compiling=timing.compiling + event.seconds)
        elif isinstance(event, PieceLoaded):
            self._timing = replace(timing, loading=timing.loading + event.seconds)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Count the time of a block in which pieces are made ready."""
        begin = time.monotonic()
        if self._timing.first is None:
            self._timing = replace(self._timing, first=begin)
        try:
            yield
        finally:
            self._timing = replace(self._timing, last=time.monotonic())
