"""Who wants to know that everything of a model is compiled."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Self

from torch_piecewise.errors import ConfigError

logger = logging.getLogger("torch_piecewise")


class Watch:
    """One :func:`set_on_compilation_complete` block.

    Attributes:
        callback: what it was given.
        is_open: False once the block is left.
    """

    def __init__(self, callback: Callable[[], Any]) -> None:
        self.callback = callback
        self.is_open = True


_WATCHES: ContextVar[tuple[Watch, ...]] = ContextVar("torch_piecewise_completion", default=())


@contextlib.contextmanager
def set_on_compilation_complete(callback: Callable[[], Any]) -> Iterator[None]:
    """Have ``callback()`` called when the last range of the last piece of a model is ready.

    ::

        with tp.set_on_compilation_complete(monitor.stop):
            model(example)

    Once for each program that becomes ready inside the block, however many threads call the model: a model
    that is called there for the first time, whether it is compiled or comes from the store (then all its
    ranges are loaded first), and one that has to be traced again. A model that was ready before is not
    announced, and one that runs eagerly never is. It runs on the thread whose call made the program ready,
    after that call and outside of all locks, so it may call the model itself. What it raises is
    logged as a warning with its traceback; the call goes on, and so do the other callbacks.

    May be nested: every callback is called, the innermost first. Each thread and each task has its own, as
    with any ``ContextVar``; a model handed to ``tp.compile`` inside the block is watched on every thread.

    Raises:
        ConfigError: ``callback`` cannot be called.
    """
    if not callable(callback):
        raise ConfigError(
            "set_on_compilation_complete was given something that cannot be called",
            expected="a function of no arguments",
            got=f"{callback!r} ({type(callback).__name__})",
        )
    watch = Watch(callback)
    token = _WATCHES.set((*_WATCHES.get(), watch))
    try:
        yield
    finally:
        watch.is_open = False
        _WATCHES.reset(token)


def watches() -> tuple[Watch, ...]:
    """The open blocks around this call, outermost first."""
    return _WATCHES.get()


class Announcement:
    """Tells, when the block around a first call is left, that a program became ready in it.

    Args:
        earlier: blocks that were open when the model was handed to ``tp.compile``.

    Attributes:
        due: set inside the block when there is something to tell.
    """

    def __init__(self, earlier: tuple[Watch, ...] = ()) -> None:
        self._watches = tuple(watch for watch in dict.fromkeys((*earlier, *watches())) if watch.is_open)
        self.due = False

    @property
    def is_awaited(self) -> bool:
        """Whether anybody listens."""
        return bool(self._watches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if not self.due:
            return
        for watch in reversed(self._watches):
            try:
                watch.callback()
            except Exception:
                # A monitor that fails is no reason to fail a user's call.
                logger.warning("a callback of set_on_compilation_complete failed", exc_info=True)
