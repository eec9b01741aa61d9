"""Every graph break of a call, also of frames that Dynamo gives up whole.

``torch._dynamo.explain`` lists those behind which a graph ended; a break that ends none (the first line of a
function) is told to the log alone. 2.11 and 2.13 write it there alike.
"""

from __future__ import annotations

import contextlib
import linecache
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from torch_piecewise.torch_private.dynamo import NOT_THE_USERS, graph_break_details, reason_of
from torch_piecewise.torch_private.settings import patched

Break = tuple[str, str, str]
"""Reason, place (``file:line (code)``) and hint."""

_LOGGERS = tuple(f"torch._dynamo.{module}.__graph_breaks" for module in ("symbolic_convert", "convert_frame"))
_FRAME = re.compile(r'^ *File "(.+)", line (\d+), in ', re.MULTILINE)
_AT = re.compile(r"^Graph break in user code at (.+):(\d+)$", re.MULTILINE)


def every_graph_break(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Break]:
    """Each graph break of a call, in the order in which they come; runs the call eagerly."""
    heard = _Listener()
    # A whole-graph trace follows numbers read from data; a piecemeal one breaks there unless told so.
    with heard.listening(), patched(torch._dynamo.config, {"capture_scalar_outputs": True}):
        torch._dynamo.explain(function)(*args, **kwargs)
    by_place: dict[str, Break] = {}
    for one in heard.found:
        by_place.setdefault(one[1], one)
    return list(by_place.values())


class _Listener(logging.Handler):
    """Reads Dynamo's log of graph breaks."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[Break] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take down one break."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:  # the frame is given up
            reason, hint, where = graph_break_details(error)
            self.found.append((reason, where, hint))
            return
        text = record.getMessage()
        at = _AT.search(text)
        if at is None:  # one that was told before
            return
        said = text[at.end() :].partition("Graph Break Reason:")[2].partition("User code traceback:")[0]
        lines = [line for line in said.splitlines() if not line.strip().startswith("Encountered graph break")]
        hints = [line.partition(":")[2].strip() for line in lines if line.strip().startswith("Hint:")]
        frames = [frame for frame in _FRAME.findall(text) if not frame[0].startswith(NOT_THE_USERS)]
        file, line = frames[-1] if frames else at.groups()
        self.found.append((reason_of("\n".join(lines)), _place(file, line), " ".join(hints)))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear what is logged inside the block, and keep it from everybody else."""
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        before = [(one.level, one.propagate) for one in loggers]
        try:
            for one in loggers:
                one.addHandler(self)
                one.setLevel(logging.DEBUG)
                one.propagate = False
            yield
        finally:
            for one, (level, propagate) in zip(loggers, before, strict=True):
                one.removeHandler(self)
                one.setLevel(level)
                one.propagate = propagate


def _place(file: str, line: str) -> str:
    return f"{file}:{line} ({linecache.getline(file, int(line)).strip()})"
