"""For which sizes the graph at hand is being compiled: what passes may ask while they run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from torch_piecewise.errors import ConfigError, PassError
from torch_piecewise.ranges import Range


@dataclass(frozen=True)
class PassContext:
    """What passes may know about the compile they are part of.

    Attributes:
        compile_range: the sizes of the dispatch dim that this graph will serve.
    """

    compile_range: Range


_current: ContextVar[PassContext | None] = ContextVar("torch_piecewise_pass_context", default=None)


@contextlib.contextmanager
def pass_context(range: Range) -> Iterator[PassContext]:
    """Passes that run inside this block compile for ``range``.

    May be nested; the innermost holds. Each thread and each task has its own.

    Raises:
        ConfigError: ``range`` is no :class:`~torch_piecewise.ranges.Range`.
    """
    if not isinstance(range, Range):
        raise ConfigError(
            "pass_context was not given a Range",
            expected="torch_piecewise.Range",
            got=f"{range!r} ({type(range).__name__})",
            hint="write pass_context(Range(1, 8))",
        )
    token = _current.set(PassContext(range))
    try:
        yield PassContext(range)
    finally:
        _current.reset(token)


def get_pass_context() -> PassContext:
    """The context of the innermost :func:`pass_context` around this call.

    A :class:`~torch_piecewise.passes.manager.PassManager` always runs its passes inside one.

    Raises:
        PassError: there is none.
    """
    context = _current.get()
    if context is None:
        raise PassError(
            "There is no pass context here",
            expected="a call from inside pass_context(range), as the passes of a PassManager are made",
            hint="wrap the call in `with pass_context(Range(...)):`",
        )
    return context


def pass_context_or_none() -> PassContext | None:
    """As :func:`get_pass_context`, but None outside of any."""
    return _current.get()
