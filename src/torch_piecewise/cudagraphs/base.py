"""What a device has to offer for static graphs, and how its class is found.

The folder in one breath: a :class:`StaticGraphBackend` records what a device was asked to do and can do
it again; ``breakable`` strings recordings and eager calls into a ``plan``; ``wrapper`` captures one
callable for each batch descriptor, ``runner`` a whole call for each size; ``dispatcher``, ``copy_inputs``,
``outputs``, ``budget`` and ``table`` are the questions they ask.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch

from torch_piecewise.cudagraph_mode import STATIC_GRAPH_VERBS
from torch_piecewise.errors import ConfigError

Value = Any
"""Whatever a model takes or returns."""


class StaticGraph(Protocol):
    """One recording. Its work is fixed: the same operations, on the same addresses."""

    def replay(self) -> None:
        """Do the recorded work again, on the caller's stream."""

    def reset(self) -> None:
        """Give the recording up; a second call does nothing. It cannot be replayed afterwards."""


class StaticGraphBackend(Protocol):
    """One pool of device memory, and the recordings that share it.

    Recordings of one pool overwrite each other's scratch memory, so only one of them may be in use at a
    time: callers enter :meth:`turn` around each call. Hand one instance to everything that runs one after
    the other, and another instance to what runs at the same time (a draft model beside its target).
    """

    checks_addresses: bool
    """Whether addresses are checked on each replay unless options say otherwise (fakes say True)."""

    def capture(self, *, collect: bool = False) -> AbstractContextManager[StaticGraph]:
        """Record what the block asks of the device; nothing of it is carried out.

        Args:
            collect: first free what nobody needs (garbage, cached device memory). Slow, so for the first
                of many captures only.

        A block that raises leaves nothing behind but the exception.

        Raises:
            StaticGraphError: this backend is recording already, or the block did what no graph can hold.
        """

    def weak(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor at the same address that does not keep the pool's memory from being used again.

        Memory that is not this pool's may vanish, so for that ``tensor`` itself comes back.
        """

    def memory_in_use(self) -> int:
        """Bytes that recordings took from the device since this instance was made."""

    def turn(self) -> AbstractContextManager[object]:
        """The right to use the pool: one thread at a time, again for the thread that has it.

        Device work of one turn starts after the device work of the turn before. The same object may be
        entered any number of times.

        Raises:
            StaticGraphError: the caller's stream is being captured by somebody else.
        """


@runtime_checkable
class RecordsCalls(Protocol):
    """A backend that cannot see into compiled code and wants to be told of each call of it."""

    def record_call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Record ``fn(*args, **kwargs)`` as one operation, and return its results."""


STATIC_GRAPH_VARIABLE = "TORCH_PIECEWISE_STATIC_GRAPH_CLASS"
"""The environment's ``static_graph_class``."""


def missing_verbs(backend: object) -> list[str]:
    """Verbs of :class:`StaticGraphBackend` that a class or an instance of one lacks."""
    return [verb for verb in STATIC_GRAPH_VERBS if not callable(getattr(backend, verb, None))]


def resolve_static_graph(name: str | type[StaticGraphBackend]) -> type[StaticGraphBackend]:
    """The class of static graphs for a device.

    Args:
        name: ``"cuda"``, or the dotted name of a class that meets :class:`StaticGraphBackend`, or that class.

    Raises:
        ConfigError: there is no such module or class, or it lacks a verb.
    """
    if isinstance(name, type):
        return _with_verbs(name, name.__qualname__)
    dotted = "torch_piecewise.cudagraphs.cuda.CUDAStaticGraph" if name == "cuda" else name
    module_name, _, class_name = dotted.rpartition(".")
    expected = '"cuda", or the dotted name of a class, "package.module.Class"'
    if not module_name or not class_name:
        raise ConfigError("The static-graph class is no dotted name", expected=expected, got=repr(name))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"The module of static-graph class {name!r} cannot be imported",
            expected=expected,
            got=f"{type(error).__name__}: {error}",
            hint="install the package that has it, or correct the name",
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise ConfigError(
            f"The static-graph class {name!r} does not exist",
            expected=f"a class named {class_name} in {module_name}",
            got="no such name" if found is None else f"a {type(found).__name__}",
        )
    return _with_verbs(found, name)


def _with_verbs(found: type[Any], name: str) -> type[StaticGraphBackend]:
    missing = missing_verbs(found)
    if missing:
        raise ConfigError(
            f"{name} is no static-graph class",
            expected=f"a class with {', '.join(STATIC_GRAPH_VERBS)}",
            got=f"a class without {', '.join(missing)}",
            hint="see torch_piecewise.cudagraphs.StaticGraphBackend for what each one does",
        )
    return found
