"""torch's structured trace (``TORCH_TRACE``, read by ``tlparse``) and its artifact logs (``TORCH_LOGS``).

``trace_structured`` and ``getArtifactLogger`` of ``torch._logging``, ``torch._guards.compile_context``: 2.11
and 2.13. They are how torch's own parts write there; https://github.com/pytorch/tlparse.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch._logging._internal import getArtifactLogger, trace_structured
from torch.fx import GraphModule


def trace_text(name: str, text: Callable[[], str]) -> None:
    """Write an artifact of text; ``text`` is called only where a trace is written."""
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": "string"},
        payload_fn=text,
        expect_trace_id=False,
    )


def trace_json(name: str, value: Callable[[], Any]) -> None:
    """Write an artifact of JSON; a mapping is written as an object, what JSON lacks by its ``repr``."""
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": "json"},
        payload_fn=lambda: json.dumps(value(), default=_plain, indent=1),
        expect_trace_id=False,
    )


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else repr(value)


@contextlib.contextmanager
def under_compile_of(graph: GraphModule) -> Iterator[None]:
    """What is traced inside the block belongs to the compile that Dynamo traced ``graph`` in."""
    compile_id = graph.meta.get("dynamo_compile_id")
    if compile_id is None or torch._guards.CompileContext.current_compile_id() is not None:
        yield
        return
    with torch._guards.compile_context(torch._guards.CompileContext(compile_id)):
        yield


def graph_code_log() -> logging.Logger:
    """The log that ``TORCH_LOGS=graph_code`` switches on; under torch's name, whose handlers it needs."""
    log: logging.Logger = getArtifactLogger("torch.torch_piecewise", "graph_code")
    return log
