"""A compiled callable and its handle: calls go to the programs made for them, the rest is for people."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.compiler import is_dynamo_compiling

from torch_piecewise.config import Config
from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs import BatchDescriptor, BudgetReport, Dispatch
from torch_piecewise.dispatch import sizes_of
from torch_piecewise.entry import MISS, Entry
from torch_piecewise.errors import ConfigError
from torch_piecewise.events import Bus, Counters
from torch_piecewise.example_call import ExampleCall
from torch_piecewise.inspection import tell
from torch_piecewise.observing import Observed
from torch_piecewise.serving import Serving
from torch_piecewise.serving_warmup import warm_up
from torch_piecewise.static_calls import StaticCalls
from torch_piecewise.subject import Subject
from torch_piecewise.tags import ModelTag, current_tag
from torch_piecewise.whole_model import WHOLE_MODES, dims_of_mode, whole_call

if TYPE_CHECKING:
    from torch_piecewise.explaining import Explanation
    from torch_piecewise.report import Report
    from torch_piecewise.trials import Profile, Verification


@dataclass(frozen=True)
class Stats:
    """What a compiled model is made of.

    Attributes:
        traces: how often it was traced.
        pieces: compiled pieces of the newest trace, cuts not counted.
        cuts: its pieces that run eagerly because they hold splitting ops.
        distinct_pieces: different pieces among ``pieces``.
        artifacts_compiled: distinct pieces x ranges that a compiler made, over all traces.
        compile_seconds: wall time in which pieces were compiled, over all traces: before calls, in them and
            in the background (``on_miss="background"``, ``upgrade_to``); 0 for an encoder.
        phase_seconds: seconds per phase of the staircase, over all traces; an encoder's phases are named
            ``encoder_trace``, ``encoder_compile`` and so on.
        encoder_compile_seconds: as ``compile_seconds``, for an encoder; 0 for any other part.
        eager_pieces: those of ``pieces`` that run as they were traced for some size: they failed to compile
            (``on_piece_error="eager"``), or are slower compiled (``on_slow_piece="eager"``).
    """

    traces: int
    pieces: int
    cuts: int
    distinct_pieces: int
    artifacts_compiled: int
    compile_seconds: float
    phase_seconds: dict[str, float]
    encoder_compile_seconds: float = 0.0
    eager_pieces: int = 0

    def __str__(self) -> str:
        """One line for people."""
        eager = f", {self.eager_pieces} eager" if self.eager_pieces else ""
        pieces = f"{self.pieces} pieces, {self.distinct_pieces} distinct{eager}, {self.cuts} cuts"
        traces = f"{self.traces} trace{'' if self.traces == 1 else 's'}"
        seconds = self.compile_seconds + self.encoder_compile_seconds
        return f"{pieces}; {traces}, {self.artifacts_compiled} compiled in {seconds:.1f} s"


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
        self._on_restore = on_restore
        self._subject = Subject(function, owner, original, declared)
        self._dims = dims_of_mode(declared or function, config)
        self._static = StaticCalls(config, self.bus)
        if config.cudagraph_mode:
            self.counters.also(self._static.counts)
        self._example: ExampleCall | None = None
        self._serving = Serving(
            self._subject,
            self._dims,
            config,
            self.tag,
            self.bus,
            self.observed,
            self._static,
            whole_call(original, self._subject.signature, self._dims, config),
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the call, compiled; traces and compiles first where no trace fits it."""
        if is_dynamo_compiling():  # a part of something that is compiled as a whole
            return self._subject.original(*args, **kwargs)
        refused = False
        try:
            for call in self._serving.calls:
                result = call(*args, **kwargs)
                if result is not MISS:
                    return result
        except TypeError:
            refused = not self._subject.takes(args, kwargs)
            if not refused:
                raise
        if refused:
            return self._subject.original(*args, **kwargs)  # the model refuses a call in its own words
        before = self.entries
        result = self._serving.first_call(args, kwargs)
        if self._example is None or self.entries is not before:
            self._example = ExampleCall.of(args, kwargs)
        return result

    # -- the handle

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The traces made so far, newest first."""
        return self._serving.entries

    @property
    def stats(self) -> Stats:
        """Counts and times so far."""
        counts = self.counters.as_dict()
        seconds = self.counters.seconds()
        program = self.entries[0].program if self.entries else None
        return Stats(
            traces=counts.get("graphs_captured", 0),
            pieces=len(program.pieces.infos) if program else 0,
            cuts=program.cuts if program else 0,
            distinct_pieces=program.pieces.distinct if program else 0,
            artifacts_compiled=counts.get("artifacts_compiled", 0),
            compile_seconds=seconds.get("compile", 0.0),
            phase_seconds=seconds,
            encoder_compile_seconds=seconds.get("encoder_compile", 0.0),
            eager_pieces=len(program.eager_pieces()) if program else 0,
        )

    @property
    def static_graphs(self) -> StaticCalls:
        """What is captured, and how calls were served; its ``reason`` says why nothing is."""
        return self._static

    def dispatch(self, descriptor: BatchDescriptor, *, allow_full: bool = True) -> Dispatch:
        """Which captured batch serves this one: ``with forward_context(*handle.dispatch(descriptor))``.

        Args:
            descriptor: the batch as it is, not padded.
            allow_full: False where this batch cannot be part of one graph.
        """
        if not self.entries:
            return Dispatch(CUDAGraphMode.NONE, descriptor)
        return self._static.dispatch(self.entries[0].program, descriptor, allow_full=allow_full)

    def warmup(self, sizes: Iterable[int] | int | None = None) -> BudgetReport | None:
        """Look up, and compile where needed, what serves each size of the dispatch dim; then capture them.

        Static graphs of every trace made so far are captured, largest first, as far as the budget goes. The
        model runs on inputs that are all padding, and writes to its caches what that gives. With
        ``on_miss="eager"`` and no trace there is nothing to do, which is a warning.

        Args:
            sizes: several, or one; None for the sizes that ``cudagraph_capture_sizes`` stands for.

        Returns:
            Where the budget of captures stands, all traces together; None where nothing is captured, and the
            log says why.

        Raises:
            ConfigError: the mode compiles nothing here, or ``sizes`` are no sizes.
            GuardError: the callable has not been traced yet (see :meth:`wait`), was restored, or a trace does
                not hold for a size.
            StaticGraphError: a size cannot be captured; those that were captured stay.
        """
        if self.config.mode in WHOLE_MODES:
            raise ConfigError(
                f"mode={self.config.mode!r} has no sizes to make ready",
                expected="mode='piecewise' or mode='trace_once'",
                got="warmup(sizes)",
                hint="call the model once with each size instead",
            )
        wanted = None if sizes is None else sizes_of(sizes)
        return warm_up(self._serving, self._static, self.config, wanted)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for what is traced and compiled in the background (``on_miss="background"``, ``upgrade_to``).

        Args:
            timeout: seconds; None for as long as it takes.

        Returns:
            Whether everything that calls needed so far is compiled: False where something is under way
            still, where work in the background failed, and where a call or a piece stays uncompiled because
            it could not be traced or its compiler failed; the log says which. A piece that only
            ``upgrade_to`` failed on is compiled.
        """
        return self._serving.wait(timeout)

    def report(self, path: str | os.PathLike[str] | None = None) -> Report:
        """What was recorded of this model: cut graph, times, use; see :meth:`Observed.report`."""
        served = self._static.table().rows()
        return self.observed.report(self._subject.label, self.entries, path, served=served)

    def verify(self, inputs: Any, *, rtol: float | None = None, atol: float | None = None) -> Verification:
        """Each piece against eager on the values that reach it; see :meth:`Observed.verify`."""
        return self.observed.verify(self.entries, inputs, rtol=rtol, atol=atol)

    def profile(self, inputs: Any, *, rounds: int = 20) -> Profile:
        """Each piece's time against eager's; see :meth:`Observed.profile`."""
        return self.observed.profile(self.entries, inputs, rounds=rounds, bus=self.bus)

    def explain(self, inputs: Any, *, every_break: bool = False) -> Explanation:
        """What compiling for such a call would do, without compiling; see :func:`explaining.explain`."""
        # Imported for its cost: tracing loads Dynamo.
        from torch_piecewise.explaining import Explained, explain

        subject = self._subject
        subject.look_again()
        callee = Explained(subject.label, subject.function, subject.signature, self._dims, self.config)
        return explain(callee, inputs, every_break=every_break)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Write a bundle of this model, as ``tp.bake`` does, for ``tp.load(path, model)`` elsewhere.

        The model is traced and compiled anew, ahead of time; what runs here stays as it is.

        Args:
            path: where to write; an existing file is replaced, by a whole one or not at all.
            example_inputs: arguments of one call, as for ``tp.bake``; None for a call like the newest one
                that was traced here.
            fields: settings other than those it runs under.

        Raises:
            GuardError: the model has not been called yet, and there are no ``example_inputs``.
            ConfigError: this is no module, the call cannot be made again, or a setting cannot be baked.
            BundleError, PieceCompileError: as ``tp.bake``.
        """
        # Imported for its cost: serving never bakes.
        from torch_piecewise.saving import save

        save(self._subject, self.config, self.tag.name, self._example, path, example_inputs, fields)

    def count_calls(self) -> None:
        """From now on count calls by size, for the report; as the setting ``count_calls`` does."""
        self.observed.count_calls(self.entries)

    def restore(self) -> None:
        """Give the model its own, uncompiled call back; a function runs uncompiled from here on.

        What was captured is given up.
        """
        self._serving.restore(self._on_restore)
        self._static.clear()
