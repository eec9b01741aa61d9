"""Lower graphs one after the other, build their C++ kernels together.

Inductor waits for the C++ compiler at the end of each graph: the generated module asks for its kernels
(``async_compile.cpp_pybinding``) and then waits for them (``async_compile.wait``), and for the precompiled
header too, while the next graph could be lowered. torch has no way to wait later (2.11, 2.13), and no issue
that asks for one was found. So :func:`kernels_later` replaces the two methods for its length; what other
threads compile meanwhile gets what it always got.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import torch._dynamo.backends.registry  # noqa: F401 - first, as torch.compile does on other threads
from torch._inductor.async_compile import AsyncCompile

from torch_piecewise.torch_private.settings import one_compile_at_a_time

_cpp_pybinding, _wait_for_all = AsyncCompile.cpp_pybinding, AsyncCompile.wait

_COLLECTING: ContextVar[LateKernels | None] = ContextVar("torch_piecewise_late_kernels", default=None)


class LateKernels:
    """The kernels that modules asked for inside :func:`kernels_later`."""

    def __init__(self) -> None:
        self._asked: list[tuple[dict[str, Any], str, _LateKernel]] = []

    @property
    def are_wanted(self) -> bool:
        """Whether there are any."""
        return bool(self._asked)

    def add(self, scope: dict[str, Any]) -> None:
        """Note what ``scope``, a generated module's, still needs."""
        kernels = [(name, value) for name, value in scope.items() if isinstance(value, _LateKernel)]
        self._asked += [(scope, name, kernel) for name, kernel in kernels]

    def submit(self) -> None:
        """Have torch begin to build them, under the settings of the calling thread."""
        for _scope, _name, kernel in self._asked:
            kernel.submit()

    def wait(self) -> None:
        """Put the built kernels in their places.

        Raises:
            Exception: what torch raises for a kernel that the C++ compiler refuses.
        """
        for scope, name, kernel in self._asked:
            scope[name] = kernel.result()


class _LateKernel:
    """Stands for a kernel in a generated module until it is built; called before, it builds itself."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._args = args
        self._kwargs = kwargs
        self._made: Any = None
        self._lock = threading.Lock()

    def submit(self) -> None:
        with self._lock:
            if self._made is None:
                self._made = _cpp_pybinding(AsyncCompile(), *self._args, **self._kwargs)

    def result(self) -> Any:
        self.submit()
        return self._made.result() if hasattr(self._made, "result") else self._made

    def __call__(self, *args: Any) -> Any:
        return self.result()(*args)


def _ask(self: AsyncCompile, *args: Any, **kwargs: Any) -> Any:
    if _COLLECTING.get() is None:
        return _cpp_pybinding(self, *args, **kwargs)
    return _LateKernel(args, kwargs)


def _wait(self: AsyncCompile, scope: dict[str, Any]) -> None:
    _wait_for_all(self, scope)
    collecting = _COLLECTING.get()
    if collecting is not None:
        collecting.add(scope)


@contextlib.contextmanager
def kernels_later() -> Iterator[LateKernels]:
    """Inside: C++ kernels of what this thread compiles are asked for and not built."""
    kernels = LateKernels()
    with _asking_later(), _collecting(kernels):
        yield kernels


def kernels_now() -> AbstractContextManager[None]:
    """Inside: kernels are built when they are asked for, also within :func:`kernels_later`."""
    return _collecting(None)


@contextlib.contextmanager
def _collecting(kernels: LateKernels | None) -> Iterator[None]:
    token = _COLLECTING.set(kernels)
    try:
        yield
    finally:
        _COLLECTING.reset(token)


@contextlib.contextmanager
def _asking_later() -> Iterator[None]:
    with one_compile_at_a_time():
        before = vars(AsyncCompile)["cpp_pybinding"], vars(AsyncCompile)["wait"]
        AsyncCompile.cpp_pybinding, AsyncCompile.wait = _ask, _wait  # type: ignore[method-assign]
        try:
            yield
        finally:
            AsyncCompile.cpp_pybinding, AsyncCompile.wait = before  # type: ignore[method-assign]
