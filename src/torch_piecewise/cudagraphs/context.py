"""What the code around a call tells the code inside it, without passing it through the model.

Both contexts are ``ContextVar`` based: each thread and each task has its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs.descriptor import BatchDescriptor
from torch_piecewise.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """What was decided for the call in progress.

    Attributes:
        mode: ``NONE``, ``PIECEWISE`` or ``FULL``.
        descriptor: the batch as it is captured, that is, after padding.
    """

    mode: CUDAGraphMode
    descriptor: BatchDescriptor


_FORWARD: ContextVar[ForwardContext | None] = ContextVar("torch_piecewise_forward", default=None)
_CAPTURE_PHASE: ContextVar[bool] = ContextVar("torch_piecewise_capture_phase", default=False)


@contextlib.contextmanager
def forward_context(mode: CUDAGraphMode, descriptor: BatchDescriptor) -> Iterator[ForwardContext]:
    """Decide for the calls inside the block which static graphs serve them.

    Args:
        mode: a plain mode; a combined one is a policy, which :class:`CUDAGraphDispatcher` turns into one.
        descriptor: the batch, padded.

    Raises:
        ConfigError: ``mode`` is a combined mode, or an argument is of another kind.
    """
    if not isinstance(mode, CUDAGraphMode) or not isinstance(descriptor, BatchDescriptor):
        raise ConfigError(
            "forward_context takes a mode and a batch",
            expected="forward_context(CUDAGraphMode.PIECEWISE, BatchDescriptor(num_tokens))",
            got=f"forward_context({mode}, {descriptor})",
        )
    if mode.separate_routine():
        raise ConfigError(
            "forward_context was given a policy instead of a decision",
            expected="CUDAGraphMode.NONE, PIECEWISE or FULL",
            got=str(mode),
            hint="take both arguments from CUDAGraphDispatcher.dispatch(descriptor)",
        )
    context = ForwardContext(mode, descriptor)
    token = _FORWARD.set(context)
    try:
        yield context
    finally:
        _FORWARD.reset(token)


def current_forward_context() -> ForwardContext | None:
    """The innermost :func:`forward_context` of this thread or task; None outside of any."""
    return _FORWARD.get()


@contextlib.contextmanager
def capture_phase() -> Iterator[None]:
    """Declare that calls inside the block may capture."""
    token = _CAPTURE_PHASE.set(True)
    try:
        yield
    finally:
        _CAPTURE_PHASE.reset(token)


def in_capture_phase() -> bool:
    """Whether a :func:`capture_phase` is open in this thread or task."""
    return _CAPTURE_PHASE.get()
