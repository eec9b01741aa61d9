"""A compiled callable: the traces made for it so far, and what happens when a call fits none of them."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch_piecewise.call_form import with_owner_named
from torch_piecewise.config import Config
from torch_piecewise.dynamic_dims import dynamic_dims
from torch_piecewise.entry import MISS, Entry
from torch_piecewise.errors import CaptureError, GuardError
from torch_piecewise.events import Bus, Counters, Recompiled
from torch_piecewise.torch_private.modules import is_dynamo_compiling, raised_by_model

if TYPE_CHECKING:
    from torch_piecewise.tracing import Tracer

logger = logging.getLogger("torch_piecewise")

RECOMPILE_LIMIT = 16
"""Traces of one callable; more of them means that a call's identity changes with every call."""


@dataclass(frozen=True)
class Stats:
    """What a compiled model is made of.

    Attributes:
        traces: how often it was traced.
        pieces: compiled pieces of the newest trace, cuts not counted.
        cuts: its pieces that run eagerly because they hold splitting ops.
        distinct_pieces: different pieces among ``pieces``.
        artifacts_compiled: distinct pieces x ranges that a compiler made, over all traces.
        compile_seconds: wall time of the compile phase, over all traces.
        phase_seconds: seconds per phase of the staircase, over all traces.
    """

    traces: int
    pieces: int
    cuts: int
    distinct_pieces: int
    artifacts_compiled: int
    compile_seconds: float
    phase_seconds: dict[str, float]


class CompiledCall:
    """What runs instead of a model's own call; the handle that ``tp.program_of`` gives.

    Safe to call from several threads: traces are made one at a time, calls run side by side.

    Args:
        function: what to trace: a function or bound method.
        owner: the module or object it is bound to; None for a plain function.
        config: the settings.
        original: what to run for calls that are not compiled (``mode="none"``, inside another trace).
        on_restore: called by :meth:`restore`.
        declared: has the parameters that people name; None: ``function`` has.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        owner: Any,
        config: Config,
        original: Callable[..., Any],
        on_restore: Callable[[], None] = lambda: None,
        declared: Callable[..., Any] | None = None,
    ) -> None:
        self.config = config
        self.counters = Counters()
        self.bus = Bus(self.counters)
        self._function = with_owner_named(function)
        self._owner = owner
        self._original = original
        self._on_restore = on_restore
        self._signature = inspect.signature(declared or function)
        self._dims = dynamic_dims(declared or function, config) if config.mode != "none" else {}
        self._tracer: Tracer | None = None
        self._entries: tuple[Entry, ...] = ()
        self._calls: tuple[Callable[..., Any], ...] = ()
        self._lock = threading.RLock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the call, compiled; traces and compiles first where no trace fits it."""
        refused = False
        try:
            for call in self._calls:
                result = call(*args, **kwargs)
                if result is not MISS:
                    return result
        except TypeError:
            refused = not self._takes(args, kwargs)
            if not refused:
                raise
        if refused or is_dynamo_compiling() or self.config.mode == "none":
            return self._original(*args, **kwargs)  # the model refuses a call in its own words
        return self._first_call(args, kwargs)

    # -- the handle

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The traces made so far, newest first."""
        return self._entries

    @property
    def stats(self) -> Stats:
        """Counts and times so far."""
        counts = self.counters.as_dict()
        seconds = self.counters.seconds()
        program = self._entries[0].program if self._entries else None
        return Stats(
            traces=counts.get("graphs_captured", 0),
            pieces=len(program.pieces.described) if program else 0,
            cuts=program.cuts if program else 0,
            distinct_pieces=program.pieces.distinct if program else 0,
            artifacts_compiled=counts.get("artifacts_compiled", 0),
            compile_seconds=seconds.get("compile", 0.0),
            phase_seconds=seconds,
        )

    def warmup(self, sizes: Iterable[int]) -> None:
        """Look up, and compile where needed, what serves each size of the dispatch dim.

        Raises:
            GuardError: the callable has not been traced yet, or a trace does not hold for a size.
        """
        if not self._entries:
            raise GuardError(
                "Nothing has been traced yet",
                expected="one call with example inputs before warmup(sizes)",
                hint="call the model once, under the grad mode it will be served with",
            )
        program = self._entries[0].program
        for size in sizes:
            others = (size,) * (len(program.sizes.symbols) - 1)
            program.table.find((size, *others) if others else size)

    def restore(self) -> None:
        """Give the model its own, uncompiled call back."""
        self._on_restore()

    # -- tracing

    def _takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether such a call has the arguments it needs, and no others."""
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    def _first_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._lock:
            for entry in self._entries:  # another thread may have traced it meanwhile
                result = entry.call(*args, **kwargs)
                if result is not MISS:
                    return result
            if self._entries:
                self._on_miss(args, kwargs)
            new = self._new_entry(args, kwargs)
        result = new.call(*args, **kwargs)
        if result is MISS:
            raise GuardError(
                "A fresh trace does not accept the very call it was made from",
                got=new.why_not(*args, **kwargs),
                hint="please report this with the model; guards='full' may serve meanwhile",
            )
        return result

    def _new_entry(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
        """An entry for calls like this one."""
        failure: Exception | None = None
        try:
            entry = self._trace(args, kwargs)
        except (CaptureError, TypeError) as error:
            failure = error
        if failure is not None:
            if raised_by_model(failure) or not self._takes(args, kwargs):
                self._original(*args, **kwargs)  # the model refuses a call in its own words
            raise failure
        self._entries = (entry, *self._entries)
        self._calls = tuple(one.call for one in self._entries)
        return entry

    def _on_miss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reason = self._entries[0].why_not(*args, **kwargs)
        if self.config.on_guard_failure == "error":
            raise GuardError(
                "This call is not one the model was traced for",
                got=reason,
                hint="call it as it was first called, or set on_guard_failure='recompile'",
            )
        if len(self._entries) >= RECOMPILE_LIMIT:
            raise GuardError(
                f"The model was traced {RECOMPILE_LIMIT} times and the next call differs again",
                expected="calls that few traces serve",
                got=reason,
                hint="declare what changes in dynamic_arg_dims, or pass it as a tensor",
            )
        logger.info("tracing again: %s", reason)
        self.bus.emit(Recompiled(reason=reason))

    def _trace(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
        # Imported for its cost: tracing and compiling load Dynamo, which a start from the store never needs.
        from torch_piecewise.tracing import Tracer

        start = time.monotonic()
        if self._tracer is None:
            self._tracer = Tracer(
                self._function, self._signature, self._owner, self._dims, self.config, self.bus
            )
        entry = self._tracer.trace(args, kwargs)
        logger.info("compiled in %.1f s", time.monotonic() - start)
        return entry
