"""Patching torch's configuration modules for the length of a block (2.11, 2.13), one compile at a time.

``config.patch`` is how torch itself scopes settings; the modules install it at run time, so that type
checkers do not see it. What it sets belongs to the thread in 2.13, and to the whole process in 2.11.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from torch.utils import _config_module

OF_THE_PROCESS = not hasattr(_config_module, "ContextVar")
"""Whether settings are the whole process's (2.11)."""

_COMPILING: ContextVar[bool] = ContextVar("torch_piecewise_compiling", default=False)


class _Locks:
    """One compile at a time, as in torch, but not under its lock.

    Who holds Dynamo's lock may be waiting for what is compiled here.
    """

    def __init__(self) -> None:
        self.compile = threading.RLock()


_locks = _Locks()
# A thread that holds one is not there in a child, and would never give it back.
os.register_at_fork(after_in_child=_locks.__init__)  # type: ignore[misc]


def patched(config: Any, settings: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Set ``settings`` in a torch configuration module inside the block."""
    context: AbstractContextManager[None] = config.patch(dict(settings))
    return context


@contextlib.contextmanager
def patched_beside_compiles(config: Any, settings: Mapping[str, Any]) -> Iterator[None]:
    """As :func:`patched`, where another thread may compile: it keeps its own settings."""
    with _locks.compile if OF_THE_PROCESS else contextlib.nullcontext(), patched(config, settings):
        yield


@contextlib.contextmanager
def one_compile_at_a_time() -> Iterator[None]:
    """Inside, no other thread of this library compiles."""
    with _locks.compile:
        yield


@contextlib.contextmanager
def no_compile_beside(lock: Any) -> Iterator[None]:
    """Inside, ``lock`` is held and no other thread of this library compiles.

    While it lowers a graph, torch.fx replaces ``Module.__call__`` for the whole process (2.11, 2.13), and a
    trace on another thread would take what stands there for the model's own code. Neither lock is waited for
    while the other is held: who holds that may be waiting for this one.
    """
    first, second = lock, _locks.compile
    while True:
        first.acquire()
        if second.acquire(blocking=False):
            break
        first.release()
        first, second = second, first
    try:
        yield
    finally:
        second.release()
        first.release()


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Inside: :func:`is_compiling`."""
    token = _COMPILING.set(True)
    try:
        yield
    finally:
        _COMPILING.reset(token)


def is_compiling() -> bool:
    """Whether this thread compiles a graph, and may hold what others wait for."""
    return _COMPILING.get()
