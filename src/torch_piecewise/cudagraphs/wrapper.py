"""One callable, captured once for each kind of batch."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch

from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs.addresses import AddressBook
from torch_piecewise.cudagraphs.base import (
    STATIC_GRAPH_VARIABLE,
    StaticGraphBackend,
    Value,
    missing_verbs,
    resolve_static_graph,
)
from torch_piecewise.cudagraphs.breakable import capture_in_progress, capture_plan
from torch_piecewise.cudagraphs.context import current_forward_context, in_capture_phase
from torch_piecewise.cudagraphs.cuda import CUDAStaticGraph
from torch_piecewise.cudagraphs.deferred import DeferredCUDAStaticGraph
from torch_piecewise.cudagraphs.descriptor import BatchDescriptor
from torch_piecewise.cudagraphs.outputs import OutputPolicy, StaticOutputs
from torch_piecewise.cudagraphs.plan import ReplayPlan
from torch_piecewise.cudagraphs.table import ReplayTable
from torch_piecewise.errors import ArgumentError, ConfigError, StaticGraphError
from torch_piecewise.torch_private.cudagraphs import PoolHandle, flatten

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CUDAGraphOptions:
    """How a :class:`CUDAGraphWrapper` captures and replays.

    Attributes:
        log_captures: log each capture at level INFO. For one piece of a call: they are captured together.
        collect_garbage: collect Python's garbage and free cached device memory before each capture. Slow,
            and once for a call is enough, so on for its first piece only.
        outputs: how results reach the caller.
        weak_outputs: with ``OutputPolicy.BORROW``: let the next capture use the results' memory. For the last
            piece of a call, whose results are copied or used up before anything else is replayed.
        capture_only_in_warmup: refuse to capture outside of a :func:`capture_phase`.
        check_addresses: on each replay, check that the arguments lie where the captured ones lay. None leaves
            it to the backend: on with the testing recorder, off on a GPU.
    """

    log_captures: bool = True
    collect_garbage: bool = True
    outputs: OutputPolicy = OutputPolicy.COPY
    weak_outputs: bool = False
    capture_only_in_warmup: bool = False
    check_addresses: bool | None = None

    @classmethod
    def for_piece(
        cls,
        index: int,
        count: int,
        *,
        capture_only_in_warmup: bool = False,
        check_addresses: bool | None = None,
    ) -> Self:
        """Options of captured piece number ``index`` (from 0) of the ``count`` that make up a call.

        Results of pieces are borrowed: whoever strings the pieces together copies what leaves the call.
        """
        return cls(
            log_captures=index == 0,
            collect_garbage=index == 0,
            outputs=OutputPolicy.BORROW,
            weak_outputs=index == count - 1,
            capture_only_in_warmup=capture_only_in_warmup,
            check_addresses=check_addresses,
        )


@dataclass(frozen=True)
class _Entry:
    """One captured kind of batch. ``kept`` holds what the graph reads and nobody else may be holding."""

    plan: ReplayPlan
    outputs: StaticOutputs
    addresses: AddressBook
    kept: tuple[Any, ...]


class CUDAGraphWrapper:
    """Captures ``runnable`` once for each :class:`BatchDescriptor`, and replays it from then on.

    Without a :func:`forward_context`, or when the context's mode is not ``runtime_mode``, and inside another
    capture, calls go through. So a FULL wrapper around PIECEWISE ones captures the whole call as one graph,
    and steps aside when pieces are wanted. The attributes of ``runnable`` are reachable on the wrapper.

    A replay reads the memory of the captured arguments, wherever the new ones lie: callers pass the same
    tensors each time, filled anew. Calls are serialised over the pool; see :meth:`StaticGraphBackend.turn`.

    Args:
        runnable: what to capture. Functions in it marked with :func:`runs_eagerly` stay out of the graphs.
        runtime_mode: ``PIECEWISE`` or ``FULL``.
        options: None for the defaults.
        pool: where graphs live, shared by everything that runs one after the other. None for a pool
            of its own: of the class that ``TORCH_PIECEWISE_STATIC_GRAPH_CLASS`` names, else a CUDA pool, made
            at the first capture. A handle from ``torch.cuda.graph_pool_handle()`` for that CUDA pool.

    Raises:
        ConfigError: ``runtime_mode`` is another mode.
        ArgumentError: ``runnable`` cannot be called; ``options`` or ``pool`` are something else.
    """

    def __init__(
        self,
        runnable: Callable[..., Any],
        runtime_mode: CUDAGraphMode,
        options: CUDAGraphOptions | None = None,
        pool: StaticGraphBackend | PoolHandle | None = None,
    ) -> None:
        if runtime_mode not in (CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL):
            raise ConfigError(
                "A static-graph wrapper serves one plain mode",
                expected="CUDAGraphMode.PIECEWISE or CUDAGraphMode.FULL",
                got=str(runtime_mode),
                hint="wrap twice for a combined mode: FULL outside, PIECEWISE inside",
            )
        _check_callable(runnable)
        _check_options(options)
        # Names of its own, so that none of the runnable's attributes is hidden, underscored ones included.
        self.__runnable = runnable
        self.__mode = runtime_mode
        self.__options = options or CUDAGraphOptions()
        self.__pool: StaticGraphBackend = _backend_of(pool)
        wanted = self.__options.check_addresses
        self.__check = self.__pool.checks_addresses if wanted is None else wanted
        self.__turn = self.__pool.turn()
        self.__entries: dict[BatchDescriptor, _Entry] = {}
        self.__table = ReplayTable()

    def __call__(self, *args: Value, **kwargs: Value) -> Value:
        """Call through, capture or replay.

        Raises:
            StaticGraphError: a capture outside its phase, arguments elsewhere than the captured ones, or
                results of the last call still held under ``OutputPolicy.REFUSE``.
        """
        context = current_forward_context()
        if context is None or context.mode is not self.__mode or capture_in_progress():
            return self.__runnable(*args, **kwargs)
        with self.__turn:
            entry = self.__entries.get(context.descriptor)
            if entry is None:
                return self.__capture(context.descriptor, args, kwargs)
            if self.__check:
                entry.addresses.check(args, kwargs)
            entry.outputs.refuse_if_held()
            entry.plan.replay()
            size = context.descriptor.num_tokens
            self.__table.count(size, size, self.__mode)
            return entry.outputs.hand_out()

    def __getattr__(self, name: str) -> Value:
        # Called only for what the wrapper itself lacks; before __init__ that includes the runnable.
        runnable = self.__dict__.get("_CUDAGraphWrapper__runnable")
        if runnable is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(runnable, name)

    def unwrap(self) -> Callable[..., Any]:
        """The runnable."""
        return self.__runnable

    def clear_all_graphs(self) -> None:
        """Give up everything captured; the next call of each kind captures anew."""
        if not self.__entries:
            return
        with self.__turn:
            for entry in self.__entries.values():
                entry.plan.reset()
            self.__entries.clear()

    def captured_descriptors(self) -> tuple[BatchDescriptor, ...]:
        """The kinds of batches that have a graph, in the order of their capture."""
        return tuple(self.__entries)

    def replay_table(self) -> ReplayTable:
        """Counts of replays by size."""
        return self.__table

    def __capture(self, descriptor: BatchDescriptor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        options = self.__options
        if options.capture_only_in_warmup and not in_capture_phase():
            raise StaticGraphError(
                f"{descriptor} was to be captured outside of a capture phase",
                expected="every batch that is served was captured during warm-up",
                hint="warm this batch up inside `with capture_phase():`, or call it with CUDAGraphMode.NONE",
            )
        start = time.monotonic()
        plan = capture_plan(
            lambda: self.__runnable(*args, **kwargs),
            self.__pool,
            captures_cuts=self.__mode is CUDAGraphMode.FULL,
            collect=options.collect_garbage,
            weak_outputs=options.outputs is OutputPolicy.COPY or options.weak_outputs,
        )
        try:
            given = [leaf for leaf in flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
            lasting = frozenset(leaf.untyped_storage().data_ptr() for leaf in given)
            outputs = StaticOutputs(plan.outputs, options.outputs, lasting)
        except BaseException:
            plan.reset()
            raise
        kept = tuple(self.__pool.weak(tensor) for tensor in given)
        self.__entries[descriptor] = _Entry(plan, outputs, AddressBook(args, kwargs), kept)
        if options.log_captures:
            _log.info("captured %s as %s in %.3f s", descriptor, self.__mode, time.monotonic() - start)
        return outputs.hand_out()


def _backend_of(pool: StaticGraphBackend | PoolHandle | None) -> StaticGraphBackend:
    if pool is None:
        named = os.environ.get(STATIC_GRAPH_VARIABLE)
        found = resolve_static_graph(named) if named else CUDAStaticGraph
        return DeferredCUDAStaticGraph() if issubclass(found, CUDAStaticGraph) else found()
    if isinstance(pool, tuple):
        return DeferredCUDAStaticGraph(pool)
    missing = missing_verbs(pool)
    if missing or isinstance(pool, type):
        raise ArgumentError(
            "pool is nothing that graphs can live in",
            expected="None, a handle from torch.cuda.graph_pool_handle(), or an instance of a static-graph "
            "class, such as torch_piecewise.testing.GraphRecorder()",
            got=f"{pool!r} ({type(pool).__name__})",
            hint=f"write {pool.__name__}()" if isinstance(pool, type) else f"it lacks {', '.join(missing)}",
        )
    return pool


def _check_callable(runnable: object) -> None:
    if not callable(runnable):
        raise ArgumentError(
            "What CUDAGraphWrapper is to capture cannot be called",
            expected="a function or model",
            got=f"{runnable!r} ({type(runnable).__name__})",
        )


def _check_options(options: object) -> None:
    if options is None or isinstance(options, CUDAGraphOptions):
        return
    names = ", ".join(field.name for field in dataclasses.fields(CUDAGraphOptions))
    raise ArgumentError(
        "The options of CUDAGraphWrapper are something else",
        expected="torch_piecewise.CUDAGraphOptions, or None",
        got=f"{options!r} ({type(options).__name__})",
        hint=f"write CUDAGraphOptions(name=value, ...); it has {names}",
    )
