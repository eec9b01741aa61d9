"""A compiled callable: the traces made for it so far, and what happens when a call fits none of them."""

from __future__ import annotations

import inspect
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.compiler import is_dynamo_compiling
from torch.nn import Module

from torch_piecewise.background import Background
from torch_piecewise.call_form import with_owner_named
from torch_piecewise.completion import Announcement, watches
from torch_piecewise.config import Config
from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs import BatchDescriptor, BudgetReport, Dispatch
from torch_piecewise.entry import MISS, CallShape, Entry
from torch_piecewise.errors import (
    CaptureError,
    ConfigError,
    FingerprintError,
    GuardError,
    MissError,
    PiecewiseError,
)
from torch_piecewise.events import Bus, Counters, Recompiled
from torch_piecewise.guard_policy import refusal
from torch_piecewise.inspection import Inspection, tell
from torch_piecewise.keeping import Callee, Keeper
from torch_piecewise.managers import Managers, store_for
from torch_piecewise.observing import Observed
from torch_piecewise.static_calls import StaticCalls
from torch_piecewise.tags import ModelTag, current_tag
from torch_piecewise.torch_private.modules import raised_by_model, traceable_call
from torch_piecewise.whole_model import WHOLE_MODES, dims_of_mode, whole_call

if TYPE_CHECKING:
    from torch_piecewise.explaining import Explanation
    from torch_piecewise.report import Report
    from torch_piecewise.tracing import Traced, Tracer
    from torch_piecewise.trials import Profile, Verification

logger = logging.getLogger("torch_piecewise")


_UNCOMPILED = object()
"""Stands for the result of a call that the model itself has to serve."""


@dataclass(frozen=True)
class Stats:
    """What a compiled model is made of.

    Attributes:
        traces: how often it was traced.
        pieces: compiled pieces of the newest trace, cuts not counted.
        cuts: its pieces that run eagerly because they hold splitting ops.
        distinct_pieces: different pieces among ``pieces``.
        artifacts_compiled: distinct pieces x ranges that a compiler made, over all traces.
        compile_seconds: wall time of the compile phase, over all traces; 0 for an encoder.
        phase_seconds: seconds per phase of the staircase, over all traces; an encoder's phases are named
            ``encoder_trace``, ``encoder_compile`` and so on.
        encoder_compile_seconds: as ``compile_seconds``, for an encoder; 0 for any other part.
    """

    traces: int
    pieces: int
    cuts: int
    distinct_pieces: int
    artifacts_compiled: int
    compile_seconds: float
    phase_seconds: dict[str, float]
    encoder_compile_seconds: float = 0.0


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
        tag: names this part of a model; None for the tag in force.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        owner: Any,
        config: Config,
        original: Callable[..., Any],
        on_restore: Callable[[], None] = lambda: None,
        declared: Callable[..., Any] | None = None,
        tag: str | None = None,
    ) -> None:
        self.config = config
        self.tag: ModelTag = current_tag(tag)
        self.counters = Counters()
        self.observed = Observed(config)
        self.bus = Bus(self.counters, self.observed.recorder, tell, tag=self.tag)
        self._function = with_owner_named(function)
        self._owner = owner
        self._original = original
        self._on_restore = on_restore
        self._signature = inspect.signature(declared or function)
        self._dims = dims_of_mode(declared or function, config)
        self._plain: Any = getattr(self._function, "__func__", self._function)
        self._watches = watches()
        self._ready_programs = 0
        self._tracer: Tracer | None = None
        self._keeper: Keeper | None = None
        self._managers: Managers | None = None
        label = function.__qualname__ if owner is None else type(owner).__qualname__
        self._background = Background(label)
        self._traces_later = False
        self._static = StaticCalls(config, self.bus) if config.cudagraph_mode else None
        if self._static is not None:
            self.counters.also(self._static.counts)
        self._kept = 0
        self._is_module_call = declared is not None
        self._entries: tuple[Entry, ...] = ()
        whole = whole_call(original, self._signature, self._dims, config)
        self._calls: tuple[Callable[..., Any], ...] = (whole,) if whole is not None else ()
        self._restored = False
        self._lock = threading.RLock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the call, compiled; traces and compiles first where no trace fits it."""
        if is_dynamo_compiling():  # a part of something that is compiled as a whole
            return self._original(*args, **kwargs)
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
        if refused:
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
            pieces=len(program.pieces.infos) if program else 0,
            cuts=program.cuts if program else 0,
            distinct_pieces=program.pieces.distinct if program else 0,
            artifacts_compiled=counts.get("artifacts_compiled", 0),
            compile_seconds=seconds.get("compile", 0.0),
            phase_seconds=seconds,
            encoder_compile_seconds=seconds.get("encoder_compile", 0.0),
        )

    @property
    def static_graphs(self) -> StaticCalls | None:
        """What is captured, and how calls were served; None with ``cudagraph_mode="none"``."""
        return self._static

    def dispatch(self, descriptor: BatchDescriptor, *, allow_full: bool = True) -> Dispatch:
        """Which captured batch serves this one: ``with forward_context(*handle.dispatch(descriptor))``.

        Args:
            descriptor: the batch as it is, not padded.
            allow_full: False where this batch cannot be part of one graph.
        """
        if self._static is None or not self._entries:
            return Dispatch(CUDAGraphMode.NONE, descriptor)
        return self._static.dispatch(self._entries[0].program, descriptor, allow_full=allow_full)

    def warmup(self, sizes: Iterable[int] | None = None) -> BudgetReport | None:
        """Look up, and compile where needed, what serves each size of the dispatch dim; then capture them.

        Static graphs are captured largest first, as far as the budget goes. The model runs on inputs that
        are all padding, and writes to its caches what that gives.

        Args:
            sizes: None for the sizes that ``cudagraph_capture_sizes`` stands for.

        Returns:
            Where the budget of captures stands; None where nothing is captured.

        Raises:
            ConfigError: the mode compiles nothing here.
            GuardError: the callable has not been traced yet, or a trace does not hold for a size.
            StaticGraphError: a size cannot be captured; those captured before it stay.
        """
        if self.config.mode in WHOLE_MODES:
            raise ConfigError(
                f"mode={self.config.mode!r} has no sizes to make ready",
                expected="mode='piecewise' or mode='trace_once'",
                got="warmup(sizes)",
                hint="call the model once with each size instead",
            )
        wanted = None if sizes is None else tuple(sizes)
        if not self._entries:
            raise GuardError(
                "Nothing has been traced yet",
                expected="one call with example inputs before warmup(sizes)",
                hint="call the model once, under the grad mode it will be served with",
            )
        program = self._entries[0].program
        others = len(program.sizes.symbols) - 1
        # A capture looks up what serves it by itself, with the other sizes of the calls so far.
        looks_up = self._static is None or others <= 0
        for size in wanted or () if looks_up else ():
            program.table.find((size,) * (others + 1) if others > 0 else size)
        return self._static.warmup(program, wanted) if self._static is not None else None

    def report(self, path: str | os.PathLike[str] | None = None) -> Report:
        """What was recorded of this model: cut graph, timeline, use, misses; see :meth:`Observed.report`."""
        return self.observed.report(self._label, self._entries, path)

    def verify(self, inputs: Any, *, rtol: float | None = None, atol: float | None = None) -> Verification:
        """Each piece against eager on the values that reach it; see :meth:`Observed.verify`."""
        return self.observed.verify(self._entries, inputs, rtol=rtol, atol=atol)

    def profile(self, inputs: Any, *, rounds: int = 20) -> Profile:
        """Each piece's time against eager's; see :meth:`Observed.profile`."""
        return self.observed.profile(self._entries, inputs, rounds=rounds, bus=self.bus)

    def explain(self, inputs: Any, *, every_break: bool = False) -> Explanation:
        """What compiling for such a call would do, without compiling; see :func:`explaining.explain`."""
        # Imported for its cost: tracing loads Dynamo.
        from torch_piecewise.explaining import Explained, explain

        self._choose_function()
        callee = Explained(self._label, self._function, self._signature, self._dims, self.config)
        return explain(callee, inputs, every_break=every_break)

    def count_calls(self) -> None:
        """From now on count calls by size, for the report; as the setting ``count_calls`` does."""
        self.observed.count_calls(self._entries)

    def restore(self) -> None:
        """Give the model its own, uncompiled call back; a function runs uncompiled from here on.

        What was captured is given up.
        """
        with self._lock:
            self._restored = True
            self._calls = (self._original,)
            self._on_restore()
        if self._static is not None:
            self._static.clear()

    # -- tracing

    @property
    def _label(self) -> str:
        return type(self._owner).__qualname__ if self._owner is not None else self._plain.__qualname__

    def _takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether such a call has the arguments it needs, and no others."""
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    def _first_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with Announcement(self._watches) as news:
            result = self._served_first(args, kwargs, news)
        return self._original(*args, **kwargs) if result is _UNCOMPILED else result

    def _served_first(self, args: tuple[Any, ...], kwargs: dict[str, Any], news: Announcement) -> Any:
        # A call that need not wait for a trace does not wait for another's either.
        if not self._lock.acquire(blocking=self.config.on_miss != "background"):
            return _UNCOMPILED
        before = self._ready_programs
        try:
            return self._serve_first(args, kwargs, everything=news.is_awaited)
        finally:
            later = self.config.on_miss == "background" and self._background.is_busy
            news.due = self._ready_programs > before and not later
            if self._ready_programs > before and later:
                self._background.add(lambda: self._announce(news))
            self._lock.release()

    def _announce(self, awaited: Announcement) -> None:
        """Tell those who waited when a call came, now that the background is done with it."""
        with awaited:
            awaited.due = True

    def _serve_first(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, everything: bool) -> Any:
        """Serve a call that no trace known so far fits; ``everything``: make all ranges of it ready."""
        if self._restored:  # by another thread, meanwhile
            return self._original(*args, **kwargs)
        for entry in self._entries:  # another thread may have traced it meanwhile
            result = entry.call(*args, **kwargs)
            if result is not MISS:
                return result
        if self._managers is None:
            self._choose_function()
            self._open()
            result = self._from_store(args, kwargs, everything=everything)
            if result is not MISS:
                return result
        if self._entries:
            self._on_miss(args, kwargs)
        self._choose_function()
        result = self._make_entry(args, kwargs, everything=everything)
        if result is MISS:
            raise GuardError(
                "A fresh trace does not accept the very call it was made from",
                got=self._entries[0].why_not(*args, **kwargs),
                hint="please report this with the model; tp.program_of(model).restore() runs it uncompiled",
            )
        return result

    def _choose_function(self) -> None:
        """What to trace: the model's hooks decide, which may have come after it was compiled."""
        if not isinstance(self._owner, Module) or not self._is_module_call:
            return
        function = with_owner_named(traceable_call(self._owner))
        if getattr(function, "__func__", function) is self._plain:
            return
        self._function = function
        self._plain = getattr(function, "__func__", function)
        self._original = traceable_call(self._owner)
        self._tracer = self._keeper = None

    def _open(self) -> None:
        """Find the store and what in it could be this callable's."""
        store = store_for(self.config)
        self._managers = Managers(self.config, self.bus, store, self._background)
        if store is None or not getattr(self._managers.compiler, "keeps_artifacts", False):
            return
        callee = Callee(self._plain, self._owner, self.tag.name, self.tag.is_encoder)
        if self.config.guards == "full":
            logger.info(
                "%s is traced in each process: guards='full' compares objects of this process, which "
                "cannot be kept; its compiled pieces are kept all the same",
                callee.label,
            )
            return
        try:
            self._keeper = Keeper(store, callee, self.config, self._managers.compiler, self.bus)
        except FingerprintError as error:
            logger.warning("nothing of %s is kept: %s", callee.label, error)

    def _from_store(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, everything: bool) -> Any:
        """Take every kept program; the result of the call if one of them serves it, else MISS."""
        if self._keeper is None or self._managers is None:
            return MISS
        own_signature = inspect.signature(self._function, follow_wrapped=False)
        shape = CallShape(own_signature, self._owner, self._plain)
        answer: Any = MISS
        with self.bus.phase("load"):
            for entry in self._keeper.load(shape, self._managers):
                self._kept += 1
                self._add(entry)
                if answer is MISS:
                    answer = entry.call(*args, **kwargs)
                    serving = entry
            if answer is not MISS:
                if everything:
                    serving.program.prepare()
                self._show_kept(serving)
                self._ready_programs += 1
        return answer

    def _show_kept(self, entry: Entry) -> None:
        """The folder of a program from the store, for people who asked for one."""
        if self.config.debug_dump_path is None or self._keeper is None:
            return
        inspection = Inspection(self.config, self.tag, self._keeper.callee.name)
        pieces = entry.program.pieces
        inspection.kept(entry.program.stitched.source, {name: pieces.graph(name) for name in pieces.needed()})
        inspection.add("transformed_code.py", entry.source)
        inspection.add("ingredients.json", self._keeper.ingredients())

    def _add(self, entry: Entry) -> None:
        if self._static is not None:
            entry.state.on_other_memory = self._static.serve(
                entry.program, entry.watched if self.config.guards != "none" else frozenset()
            )
        self.observed.added(entry)
        self._entries = (entry, *self._entries)
        self._calls = tuple(one.call for one in self._entries)

    def _make_entry(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, everything: bool) -> Any:
        """Trace and compile, in turn with everybody on the same store, and run the call."""
        if self.config.on_miss == "error":
            raise MissError(
                "on_miss='error' and the store has no program for this call",
                expected="a program kept by an earlier start",
                got=self._keeper.why() if self._keeper is not None else "nothing of it can be kept",
                hint="run once with on_miss='compile' on the same root",
            )
        if self.config.on_miss == "eager":
            return _UNCOMPILED
        if self.config.on_miss == "background":
            self._make_entry_later(args, kwargs)
            return _UNCOMPILED
        kept = self._new_entry(self._traced, args, kwargs, everything=everything)
        return kept if kept is not MISS else self._entries[0].call(*args, **kwargs)

    def _make_entry_later(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Trace in the background; one trace at a time, and none for calls that failed to trace."""
        if self._traces_later:
            return
        self._traces_later = True
        awaited = Announcement(self._watches)

        def trace() -> None:
            with self._lock:
                before = self._ready_programs
                try:
                    self._new_entry(self._trace, args, kwargs, everything=awaited.is_awaited)
                except PiecewiseError as error:
                    logger.warning("calls stay eager: %s", error)
                    return
                self._traces_later = False
                if self._ready_programs > before:  # behind the pieces, which were asked for meanwhile
                    self._background.add(lambda: self._announce(awaited))

        self._background.add(trace)

    def _new_entry(
        self,
        trace: Callable[[tuple[Any, ...], dict[str, Any]], Traced],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        everything: bool,
    ) -> Any:
        """Make an entry for such calls; the call's result where another process's program serves it."""
        if self._keeper is None:
            self._add(trace(args, kwargs).entry)
            self._ready_programs += 1
            return MISS
        with self._keeper.turn():
            before = self._kept
            result = self._newly_kept(args, kwargs, everything=everything)
            if result is not MISS:
                return result
            traced = trace(args, kwargs)
            traced.inspection.add("ingredients.json", self._keeper.ingredients())
            companions = {**traced.companions, **self.observed.companions(self._label, traced.entry)}
            self._keeper.keep(traced.entry, traced.sources, companions, before)
            self._kept += 1
            self._add(traced.entry)
            self._ready_programs += 1
        return MISS

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
        """The call traced and compiled; what the model itself refuses, it refuses in its own words."""
        failure: Exception | None = None
        try:
            return self._trace(args, kwargs)
        except (CaptureError, TypeError) as error:
            failure = error
        if raised_by_model(failure) or not self._takes(args, kwargs):
            self._original(*args, **kwargs)
        raise failure

    def _newly_kept(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, everything: bool) -> Any:
        """What another process kept while this one waited for its turn."""
        if self._entries:
            return MISS
        return self._from_store(args, kwargs, everything=everything)

    def _on_miss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for entry in self._entries if self.config.evaluate_guards else ():
            error = entry.size_error(*args, **kwargs)
            if error is not None:
                raise error
        reason = self._entries[0].why_not(*args, **kwargs)
        error = refusal(self.config, reason, len(self._entries))
        if error is not None:
            raise error
        logger.info("tracing again: %s", reason)
        self.bus.emit(Recompiled(reason=reason))

    def _trace(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
        # Imported for its cost: tracing and compiling load Dynamo, which a start from the store never needs.
        from torch_piecewise.tracing import Tracer

        start = time.monotonic()
        if self._tracer is None:
            assert self._managers is not None
            self._tracer = Tracer(
                self._function,
                self._signature,
                self._owner,
                self._dims,
                self.config,
                self.bus,
                self._managers,
            )
        traced = self._tracer.trace(args, kwargs)
        logger.info("compiled in %.1f s", time.monotonic() - start)
        return traced
