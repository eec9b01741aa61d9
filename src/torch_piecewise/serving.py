"""The programs of one callable: from the store, from a trace, from the background; which of them serves."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch_piecewise.background import Background
from torch_piecewise.compilers.base import Ambient
from torch_piecewise.completion import Announcement, watches
from torch_piecewise.config import Config
from torch_piecewise.dynamic_dims import Dims
from torch_piecewise.entry import MISS, CallShape, Entry
from torch_piecewise.entry_inputs import input_names, inputs_of_call
from torch_piecewise.errors import CaptureError, FingerprintError, GuardError, MissError, PiecewiseError
from torch_piecewise.events import Bus, Recompiled
from torch_piecewise.guard_policy import Repeats, refusal, stays_eager
from torch_piecewise.inspection import Inspection
from torch_piecewise.keeping import Callee, Keeper
from torch_piecewise.managers import Managers, store_for
from torch_piecewise.observing import Observed
from torch_piecewise.static_calls import StaticCalls
from torch_piecewise.subject import Subject
from torch_piecewise.tags import ModelTag
from torch_piecewise.torch_private.modules import raised_by_model

if TYPE_CHECKING:
    from torch_piecewise.tracing import Traced, Tracer

logger = logging.getLogger("torch_piecewise")

_UNCOMPILED = object()
"""Stands for the result of a call that the model itself has to serve."""


class Serving:
    """The programs of one callable. Safe to use from several threads: traces are made one at a time.

    Args:
        subject: the callable.
        dims: which dims of its arguments are dynamic.
        config: the settings.
        tag: which part of a model it is.
        bus: told what happens.
        observed: told of each new program, for reports.
        static: captures static graphs of them.
        whole: serves every call, where the mode makes no programs.

    Attributes:
        entries: the programs by the calls they serve, newest first.
        calls: their functions: take the call's arguments, return its result or ``MISS``.
    """

    def __init__(
        self,
        subject: Subject,
        dims: Dims,
        config: Config,
        tag: ModelTag,
        bus: Bus,
        observed: Observed,
        static: StaticCalls,
        whole: Callable[..., Any] | None,
    ) -> None:
        self.subject = subject
        self._dims = dims
        self._config = config
        self._tag = tag
        self._bus = bus
        self._observed = observed
        self._static = static
        self.entries: tuple[Entry, ...] = ()
        self.calls: tuple[Callable[..., Any], ...] = (whole,) if whole is not None else ()
        self.background = Background(subject.label)
        self.lock = threading.RLock()
        self._watches = watches()
        self._ready_programs = 0
        self._repeats = Repeats(subject.label)
        self._tracer: Tracer | None = None
        self._keeper: Keeper | None = None
        self._why_not_kept = "there is no store"
        self._managers: Managers | None = None
        self._traces_later = False
        self._kept = 0
        self._restored = False

    @property
    def is_restored(self) -> bool:
        """Whether calls run the callable as it is."""
        return self._restored

    @property
    def was_called(self) -> bool:
        """Whether a call came that had to be served by something."""
        return self._managers is not None

    def wait(self, timeout: float | None) -> bool:
        """See :meth:`~torch_piecewise.compiled.CompiledCall.wait`."""
        if not self.background.wait(timeout) or self.background.has_failed or self._traces_later:
            return False
        return all(entry.program.is_compiled() for entry in self.entries)

    def restore(self, on_restore: Callable[[], None]) -> None:
        """From now on run the callable as it is."""
        with self.lock:
            self._restored = True
            self.calls = (self.subject.original,)
            on_restore()

    def first_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Serve a call that none of :attr:`calls` fits.

        Raises:
            GuardError, MissError, CaptureError, PieceCompileError: it cannot be served; says why.
        """
        with Announcement(self._watches) as news:
            result = self._served_first(args, kwargs, news)
        return self.subject.original(*args, **kwargs) if result is _UNCOMPILED else result

    def _served_first(self, args: tuple[Any, ...], kwargs: dict[str, Any], news: Announcement) -> Any:
        # A call that need not wait for a trace does not wait for another's either.
        if not self.lock.acquire(blocking=self._config.on_miss != "background"):
            return _UNCOMPILED
        before = self._ready_programs
        try:
            return self._serve_first(args, kwargs, everything=news.is_awaited)
        finally:
            later = self._config.on_miss == "background" and self.background.is_busy
            news.due = self._ready_programs > before and not later
            if self._ready_programs > before and later:
                self.background.add(lambda: self._announce(news))
            self.lock.release()

    def _announce(self, awaited: Announcement) -> None:
        """Tell those who waited when a call came, now that the background is done with it."""
        with awaited:
            awaited.due = True

    def _serve_first(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, everything: bool) -> Any:
        """Serve a call that no trace known so far fits; ``everything``: make all ranges of it ready."""
        if self._restored:  # by another thread, meanwhile
            return self.subject.original(*args, **kwargs)
        for entry in self.entries:  # another thread may have traced it meanwhile
            result = entry.call(*args, **kwargs)
            if result is not MISS:
                return result
        if self._managers is None:
            self._look_again()
            self._open()
            result = self._from_store(args, kwargs, everything=everything)
            if result is not MISS:
                return result
        if self._traces_later:
            return _UNCOMPILED
        if self.entries and not self._traces_again(args, kwargs):
            return _UNCOMPILED
        self._look_again()
        result = self._make_entry(args, kwargs, everything=everything)
        if result is MISS:
            raise GuardError(
                "A fresh trace does not accept the very call it was made from",
                got=str(self.entries[0].why_not(*args, **kwargs)),
                hint="please report this with the model; tp.program_of(model).restore() runs it uncompiled",
            )
        return result

    def _look_again(self) -> None:
        if self.subject.look_again():
            self._tracer = self._keeper = None

    def _open(self) -> None:
        """Find the store and what in it could be this callable's."""
        store = store_for(self._config)
        self._managers = Managers(self._config, self._bus, store, self.background)
        if store is None:
            return
        if not getattr(self._managers.compiler, "keeps_artifacts", False):
            self._why_not_kept = f"what backend {self._managers.compiler.name!r} makes cannot be kept"
            return
        callee = Callee(self.subject.plain, self.subject.owner, self._tag.name, self._tag.is_encoder)
        if self._config.guards == "full":
            logger.info(
                "%s is traced in each process: guards='full' compares objects of this process, which "
                "cannot be kept; its compiled pieces are kept all the same",
                callee.label,
            )
            return
        try:
            self._keeper = Keeper(store, callee, self._config, self._managers.compiler, self._bus)
        except FingerprintError as error:
            self._why_not_kept = str(error)
            logger.warning("nothing of %s is kept: %s", callee.label, error)

    def _from_store(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, everything: bool) -> Any:
        """Take every kept program; the result of the call if one of them serves it, else MISS."""
        if self._keeper is None or self._managers is None:
            return MISS
        own_signature = inspect.signature(self.subject.function, follow_wrapped=False)
        shape = CallShape(own_signature, self.subject.owner, self.subject.plain)
        answer: Any = MISS
        with self._bus.phase("load"):
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
        if self._config.debug_dump_path is None or self._keeper is None:
            return
        inspection = Inspection(self._config, self._tag, self._keeper.callee.name)
        pieces = entry.program.pieces
        inspection.kept(entry.program.stitched.source, {name: pieces.graph(name) for name in pieces.needed()})
        inspection.add("transformed_code.py", entry.source)
        inspection.add("ingredients.json", self._keeper.ingredients())

    def _add(self, entry: Entry) -> None:
        entry.program.rely_on(entry.compared)
        if self._config.cudagraph_mode:
            entry.state.on_other_memory = self._static.serve(entry.program, entry.watched, input_names(entry))
        self._observed.added(entry)
        self.entries = (entry, *self.entries)
        self.calls = tuple(one.call for one in self.entries)

    def _make_entry(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, everything: bool) -> Any:
        """Trace and compile, in turn with everybody on the same store, and run the call."""
        if self._config.on_miss == "error":
            raise MissError(
                "on_miss='error' and the store has no program for this call",
                expected="a program kept by an earlier start",
                got=self._keeper.why_missed() if self._keeper is not None else self._why_not_kept,
                hint="run once with on_miss='compile' on the same root"
                if self._keeper is not None
                else "mend that first: no start of it is kept",
            )
        if self._config.on_miss == "eager":
            return _UNCOMPILED
        if self._config.on_miss == "background":
            self._make_entry_later(args, kwargs)
            return _UNCOMPILED
        kept = self._new_entry(self._traced, args, kwargs, everything=everything)
        return kept if kept is not MISS else self.entries[0].call(*args, **kwargs)

    def _make_entry_later(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Trace in the background; one trace at a time, and none after one that failed."""
        self._traces_later = True
        awaited = Announcement(self._watches)

        def trace() -> None:
            with self.lock:
                before = self._ready_programs
                try:
                    self._new_entry(self._trace, args, kwargs, everything=awaited.is_awaited)
                except PiecewiseError as error:
                    logger.warning("calls stay eager: %s", error)
                    return
                self._traces_later = False
                self._tell_what_calls_look_like(args, kwargs)
                if self._ready_programs > before:  # behind the pieces, which were asked for meanwhile
                    self.background.add(lambda: self._announce(awaited))

        self.background.add(trace)

    def _tell_what_calls_look_like(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A warm-up goes by a call, also by one that ran before its trace was there."""
        inputs = inputs_of_call(self.entries[0], args, kwargs) if self._config.cudagraph_mode else None
        if inputs is not None:
            self._static.saw(self.entries[0].program, inputs)

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
            companions = {
                **traced.companions(),
                **self._observed.companions(self.subject.label, traced.entry),
            }
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
        if raised_by_model(failure) or not self.subject.takes(args, kwargs):
            self.subject.original(*args, **kwargs)
        raise failure

    def _newly_kept(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, everything: bool) -> Any:
        """What another process kept while this one waited for its turn."""
        if self.entries:
            return MISS
        return self._from_store(args, kwargs, everything=everything)

    def _traces_again(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call that no trace serves is traced; else it runs uncompiled."""
        for entry in self.entries if self._config.evaluate_guards else ():
            error = entry.size_error(*args, **kwargs)
            if error is not None:
                raise error
        reason = self.entries[0].why_not(*args, **kwargs)
        error = refusal(self._config, reason)
        if error is not None:
            raise error
        is_last = stays_eager(self._config, len(self.entries))
        news = self._repeats.warning_past_limit(reason) if is_last else self._repeats.warning(reason)
        if news is not None:
            logger.warning("%s", news)
        if not is_last:
            logger.info("tracing again: %s", reason)
            self._bus.emit(Recompiled(reason=str(reason)))
        return not is_last

    def _trace(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
        start = time.monotonic()
        assert self._managers is not None
        # First of all: its preparations take longer than all that comes before they are needed.
        self._managers.of(Ambient.now()).first.warm_up(self.subject.devices(args, kwargs))
        # Imported for its cost: tracing and compiling load Dynamo, which a start from the store never needs.
        from torch_piecewise.tracing import Tracer

        if self._tracer is None:
            self._tracer = Tracer(
                self.subject.function,
                self.subject.signature,
                self.subject.owner,
                self._dims,
                self._config,
                self._bus,
                self._managers,
            )
        traced = self._tracer.trace(args, kwargs)
        logger.info("compiled in %.1f s", time.monotonic() - start)
        return traced
