"""Inductor's partition functions: having them made, for any device, and standing around them.

With ``graph_partition`` Inductor cuts its generated code at the named operations, and can put what lies
between them into functions of their own (``Runner.partitions`` of the generated module; 2.11 and 2.13). It
does so where it captures CUDA graphs itself, or where ``torch._inductor.utils`` has a
``set_customized_partition_wrappers`` for the whole process: an interface that torch calls unstable
(https://github.com/pytorch/pytorch/pull/154858).
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch

Partition = Callable[[list[Any]], tuple[Any, ...]]
"""One partition function: takes its inputs as a list, which it empties."""

Around = Callable[[Partition, list[Any]], tuple[Any, ...]]
"""Called in place of each partition function, with the function and its inputs."""

_AROUND: ContextVar[Around | None] = ContextVar("torch_piecewise_around_partitions", default=None)
_ALIGNMENT = 16
"""``torch._inductor.utils.ALIGNMENT``, in bytes; generated GPU code copies what lies elsewhere."""


@contextlib.contextmanager
def partitions_through(around: Around) -> Iterator[None]:
    """Inside, in this thread or task: partition functions of :class:`Partitioned` code run by ``around``."""
    token = _AROUND.set(around)
    try:
        yield
    finally:
        _AROUND.reset(token)


class Partitioned:
    """A compiled piece whose generated code calls partition functions one after the other.

    Args:
        run: the piece.
        runner: the generated module's ``runner``, whose ``partitions`` the code calls.
        graph: what must live as long as the piece: ``CompiledFxGraph`` empties the runner when it goes.
    """

    def __init__(self, run: Callable[..., tuple[Any, ...]], runner: Any, graph: Any = None) -> None:
        self._run = run
        self._graph = graph
        runner.partitions = [_marked(partition) for partition in runner.partitions]
        self.count: int = len(runner.partitions)

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        return self._run(*args)

    def works_on_copies(self, args: tuple[Any, ...]) -> bool:
        """Whether a call works on aligned copies of inputs that it writes to, and copies them back after."""
        checked = frozenset(getattr(self._graph, "inputs_to_check", ()) or ())
        if not checked.intersection(getattr(self._graph, "mutated_input_idxs", ()) or ()):
            return False
        tensors = (value for value in args if isinstance(value, torch.Tensor))
        return any(tensor.data_ptr() % _ALIGNMENT for tensor in tensors)


def partitioned(run: Callable[..., tuple[Any, ...]], graph: Any) -> Callable[..., tuple[Any, ...]]:
    """``run`` as :class:`Partitioned` code, where it is.

    Args:
        graph: its ``CompiledFxGraph``, loaded; None where nobody knows it.
    """
    runner = getattr(graph, "compiled_fn_runner", None)
    return Partitioned(run, runner, graph) if getattr(runner, "partitions", None) else run


def _marked(partition: Partition) -> Partition:
    if hasattr(partition, "torch_piecewise_marked"):
        return partition

    @functools.wraps(partition)
    def call(args: list[Any]) -> tuple[Any, ...]:
        around = _AROUND.get()
        return partition(args) if around is None else around(partition, args)

    call.torch_piecewise_marked = True  # type: ignore[attr-defined]
    return call


class _StandIn:
    """What stands for a process-wide wrapper while this thread compiles.

    It is there (``is not None``), so the scheduler makes partition functions; to this thread it is not in
    force (false), so that torch's ``post_compile`` leaves them alone, and goes on to realign inputs, which it
    does not do for a wrapper. To other threads it is the wrapper that was set before.
    """

    def __init__(self, before: Callable[..., Any] | None) -> None:
        self.before = before
        self._thread = threading.get_ident()

    def __bool__(self) -> bool:
        return threading.get_ident() != self._thread and self.before is not None

    def __call__(self, partition: Partition, metadata: Any) -> Partition:
        wrapped: Partition = partition if self.before is None else self.before(partition, metadata)
        return wrapped


@contextlib.contextmanager
def partition_functions() -> Iterator[None]:
    """Inside: what this thread compiles gets partition functions. One thread at a time.

    The wrapper belongs to the process and torch has no other door (2.11, 2.13); what was set before is
    restored, and stays in force for other threads.
    """
    from torch._inductor import utils  # here for its cost: starts that compile nothing need no Inductor

    place: Any = utils._unstable_customized_partition_wrapper
    stand_in = _StandIn(place.wrapper)
    utils.set_customized_partition_wrappers(stand_in)
    try:
        yield
    finally:
        if place.wrapper is stand_in:
            place.wrapper = stand_in.before
