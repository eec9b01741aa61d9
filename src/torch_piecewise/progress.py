"""Progress of a start: one line that moves on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

logger = logging.getLogger("torch_piecewise")


class Progress:
    """Reports (done, total) of the pieces being compiled, or of other things.

    Args:
        stream: where the moving line goes if it is a terminal; None for standard error.
        verb, done, thing: what happens to what, and how it is called once it happened.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        verb: str = "compiling",
        done: str = "compiled",
        thing: str = "piece",
    ) -> None:
        self._verb, self._done, self._thing = verb, done, thing
        self._stream = stream if stream is not None else sys.stderr
        self._moving = self._stream.isatty()

    def __call__(self, done: int, total: int, seconds: float) -> None:
        """One more of ``total`` pieces is ready; it took ``seconds``."""
        if not self._moving:
            logger.info("%s %s %d of %d in %.1f s", self._done, self._thing, done, total, seconds)
            return
        filled = 24 * done // total
        bar = "#" * filled + "." * (24 - filled)
        end = "\r\x1b[K" if done == total else ""
        self._stream.write(f"\r\x1b[K{self._verb} {self._thing}s [{bar}] {done}/{total}{end}")
        self._stream.flush()
