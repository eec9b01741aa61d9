"""Static graphs of a compiled callable: what is captured of its programs, and where.

Each program's calls go through a :class:`~torch_piecewise.cudagraphs.StaticGraphRunner`, made of the facts
that its trace left behind. All programs of one callable share one pool: their calls follow one another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from torch_piecewise.config import Config
from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs import (
    BatchDescriptor,
    BudgetReport,
    CaptureWhen,
    CUDAGraphDispatcher,
    CUDAStaticGraph,
    Dispatch,
    GraphBudget,
    OutputPolicy,
    ReplayTable,
    RunnerOptions,
    Spent,
    StaticGraphBackend,
    StaticGraphRunner,
    resolve_static_graph,
)
from torch_piecewise.errors import ConfigError
from torch_piecewise.events import Bus
from torch_piecewise.program import Program, SizeKey
from torch_piecewise.progress import Progress
from torch_piecewise.replay_facts import ReplayFacts
from torch_piecewise.static_calls_uncaptured import Uncaptured
from torch_piecewise.stitching import Runner

logger = logging.getLogger("torch_piecewise")


class StaticCalls:
    """The static graphs of one compiled callable. Safe to use from several threads.

    Args:
        config: how to capture.
        bus: told of captures, evictions and refusals.
    """

    def __init__(self, config: Config, bus: Bus) -> None:
        self._config = config
        self._bus = bus
        asked = config.static_graph_class if config.cudagraph_mode else None
        self._class = resolve_static_graph(asked) if asked else None
        self._uniform = _function(config.cudagraph_uniform_when) if config.cudagraph_mode else None
        self._lock = threading.Lock()
        self._backends: dict[torch.device | None, StaticGraphBackend] = {}
        self._runners: dict[Program, StaticGraphRunner] = {}
        self._said: set[str] = set()
        self._spent = Spent()
        self._uncaptured = Uncaptured()
        self._numbered: dict[Program, int] = {}
        self._tell_sizes_without_a_graph()

    @property
    def backends(self) -> tuple[StaticGraphBackend, ...]:
        """Where graphs live, one for each device; none while there is nothing to capture."""
        return tuple(self._backends.values())

    @property
    def reason(self) -> str:
        """Why nothing is captured; empty where something can be, and before the first trace."""
        if not self._config.cudagraph_mode:
            return "cudagraph_mode='none'"
        return "" if self._runners else "; ".join(self._uncaptured.reasons)

    def serve(
        self,
        program: Program,
        watched: frozenset[int] = frozenset(),
        names: Mapping[int, str] | None = None,
    ) -> Callable[[Sequence[Any], str], None]:
        """Let ``program``'s calls replay where they can.

        Args:
            watched: positions of inputs (weights) that somebody else looks at, on each call unless
                ``guards="none"``.
            names: what people call inputs, by position.

        Returns:
            To be called, by whoever watches, with the watched tensors in the order of their positions and
            the name of the one that is in other memory.
        """
        facts = program.facts
        self._numbered = {**self._numbered, program: len(self._numbered) + 1}
        if facts is None:
            self._uncaptured.serve(program, "the trace says nothing about replaying its calls")
            return _nothing
        backend = self._backend_for(facts)
        mode = self._mode(facts)
        refusal = facts.refusal or (facts.unclear if self._config.cudagraph_padding == "auto" else "")
        if refusal:
            self._say(f"static graphs are not captured: {refusal}")
        if backend is None or refusal or not mode:
            no_device = _no_device(facts) if backend is None else ""
            self._uncaptured.serve(program, refusal or no_device or facts.no_full)
            return _nothing
        runner = self._runner(program, facts, backend, mode, watched, names)
        self._runners = {**self._runners, program: runner}
        program.serve_through(
            lambda key, plain: _serving(runner, key, plain, facts, program), runner.code_changed
        )
        positions = sorted(watched)

        def memory_changed(tensors: Sequence[Any], name: str) -> None:
            current = zip(positions, tensors, strict=True)
            runner.memory_changed({at: one for at, one in current if isinstance(one, torch.Tensor)}, name)

        return memory_changed

    # -- verbs of the handle

    def saw(self, program: Program, args: Sequence[Any]) -> None:
        """A call of ``program`` had these inputs, which a warm-up goes by where no other call is known."""
        runner = self._runners.get(program)
        if runner is not None:
            runner.saw(args)

    def captures(self, program: Program) -> bool:
        """Whether static graphs can be captured of ``program``."""
        return program in self._runners

    def warmup(self, program: Program, sizes: Iterable[int] | None) -> BudgetReport | None:
        """Capture ``sizes`` of a program, largest first, or all that the settings name.

        Raises:
            StaticGraphError: a size cannot be captured; those captured before it stay.
        """
        runner, facts = self._runners.get(program), program.facts
        if runner is None or facts is None:
            return None
        largest = self._config.max_cudagraph_capture_size
        wanted = None if sizes is None else [n for n in sizes if n and (largest is None or n <= largest)]
        if wanted is not None and program.sizes.dispatch is None:
            wanted = [1]
        progress, start = Progress(verb="capturing", done="captured", thing="size"), time.monotonic()
        with self._bus.phase("capture"), contextlib.ExitStack() as stack:
            for device, dtype in facts.autocast:
                stack.enter_context(torch.autocast(device, dtype))
            return runner.warmup(
                wanted,
                progress=lambda done, total, _batch: progress(done, total, time.monotonic() - start),
            )

    def capture_pending(self) -> int:
        """Capture what calls asked for since the last time; how many kinds of batches that were."""
        return sum(runner.capture_pending() for runner in self._runners.values())

    def dispatch(self, program: Program, descriptor: BatchDescriptor, *, allow_full: bool = True) -> Dispatch:
        """What serves a batch: the arguments of ``forward_context``."""
        runner = self._runners.get(program)
        if runner is None:
            return Dispatch(CUDAGraphMode.NONE, descriptor)
        return runner.dispatcher.dispatch(descriptor, allow_full=allow_full)

    def clear(self) -> None:
        """Give up everything captured."""
        for runner in self._runners.values():
            runner.clear()

    def table(self) -> ReplayTable:
        """Counts of calls: trace, size, padded to, mode, why no graph served it.

        Calls of programs of which nothing can be captured are not in it, but in :meth:`counts`.
        """
        whole = ReplayTable()
        for program, runner in self._runners.items():
            trace = self._numbered[program]
            for row in runner.table().rows():
                whole.count(row.size, row.padded_to, row.mode, row.why, row.count, trace)
        return whole

    def captured(self) -> tuple[Dispatch, ...]:
        """What has graphs now."""
        return tuple(key for runner in self._runners.values() for key in runner.captured())

    def reports(self) -> tuple[BudgetReport, ...]:
        """Where the budget of each program stands."""
        return tuple(runner.report() for runner in self._runners.values())

    def report(self) -> BudgetReport | None:
        """Where the budget stands, all programs together; None where nothing is captured."""
        reports = self.reports()
        if not reports:
            return None
        return dataclasses.replace(
            reports[-1],
            captured=sum(one.captured for one in reports),
            evicted=sum(one.evicted for one in reports),
            refused=sum(one.refused for one in reports),
        )

    def counts(self) -> Mapping[str, int]:
        """How many calls were replayed, and how many ran without graphs."""
        rows = self.table().rows()
        replayed = sum(row.count for row in rows if row.mode)
        return {
            "calls_replayed": replayed,
            "calls_without_graphs": sum(row.count for row in rows) - replayed + self._uncaptured.calls,
        }

    # -- parts

    def _backend_for(self, facts: ReplayFacts) -> StaticGraphBackend | None:
        with self._lock:
            if facts.device not in self._backends:
                made = self._made(facts.device)
                if made is None:
                    return None
                self._backends[facts.device] = made
            return self._backends[facts.device]

    def _made(self, device: torch.device | None) -> StaticGraphBackend | None:
        if self._class is not None and not issubclass(self._class, CUDAStaticGraph):
            return self._class()
        if device is not None and device.type == "cuda":
            return (self._class or CUDAStaticGraph)(device)
        self._say(
            f"cudagraph_mode={self._config.cudagraph_mode.name.lower()!r} asks for static graphs, but the "
            f"model works on {device or 'no device'}: calls run compiled, without them; move the model to a "
            "GPU, or name a class for this device in static_graph_class"
        )
        return None

    def _mode(self, facts: ReplayFacts) -> CUDAGraphMode:
        mode = self._config.cudagraph_mode
        if not facts.no_full or not mode.has_full_cudagraphs():
            return mode
        self._say(f"whole calls are not captured: {facts.no_full}")
        return CUDAGraphMode.PIECEWISE if mode.has_piecewise_cudagraphs() else CUDAGraphMode.NONE

    def _runner(
        self,
        program: Program,
        facts: ReplayFacts,
        backend: StaticGraphBackend,
        mode: CUDAGraphMode,
        watched: frozenset[int],
        names: Mapping[int, str] | None,
    ) -> StaticGraphRunner:
        config = self._config
        has_sizes = program.sizes.dispatch is not None
        line = _captured_line(program, facts)
        return StaticGraphRunner(
            lambda _size: line,
            CUDAGraphDispatcher(
                mode,
                config.resolved_capture_sizes() if has_sizes else (1,),
                tokens_per_request=config.cudagraph_tokens_per_request if has_sizes else 1,
                lora_counts=config.cudagraph_lora_counts,
            ),
            backend,
            facts.inputs,
            facts.outputs,
            numbers=facts.numbers,
            uniform_when=self._uniform_when(facts),
            options=self._options(facts, watched, has_sizes=has_sizes),
            bus=self._bus,
            names=names,
        )

    def _options(self, facts: ReplayFacts, watched: frozenset[int], *, has_sizes: bool) -> RunnerOptions:
        config = self._config
        looked_at = watched if config.guards != "none" else frozenset()
        when = CaptureWhen.WARMUP if config.capture_only_in_warmup else CaptureWhen(config.cudagraph_capture)
        no_padding = {
            "auto": facts.no_padding if has_sizes else "",
            "always": "",
            "never": "calls are not padded: cudagraph_padding='never'",
        }[config.cudagraph_padding]
        if no_padding and config.cudagraph_padding == "auto":
            self._say(f"only calls of exactly a captured size are replayed: {no_padding}")
        return RunnerOptions(
            capture=when,
            warmups=config.cudagraph_num_of_warmups,
            outputs=OutputPolicy(config.cudagraph_outputs),
            copy_inputs=config.cudagraph_copy_inputs,
            check_addresses=config.check_addresses or None,
            always_check=frozenset(range(facts.count)) - looked_at,
            no_padding=no_padding,
            only_marked=facts.partitioned,
            budget=GraphBudget(config.cudagraph_memory_budget, config.cudagraph_time_budget),
            spent=self._spent,
        )

    def _uniform_when(self, facts: ReplayFacts) -> Callable[[Sequence[Any]], bool] | None:
        asked = self._uniform
        if asked is None:
            return None
        names = dict(facts.names)
        return lambda args: bool(asked({name: args[at] for name, at in names.items()}))

    def _tell_sizes_without_a_graph(self) -> None:
        config, per_request = self._config, self._config.cudagraph_tokens_per_request
        if not config.cudagraph_mode or config.cudagraph_mode.mixed_mode():
            return
        odd = [size for size in config.cudagraph_capture_sizes or () if size % per_request]
        if odd:
            self._say(
                f"cudagraph_capture_sizes {odd} are not captured: only decode batches are, of "
                f"cudagraph_tokens_per_request={per_request} tokens each"
            )

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)


def _nothing(_tensors: Sequence[Any], _name: str) -> None:
    pass


def _no_device(facts: ReplayFacts) -> str:
    return f"the model works on {facts.device or 'no device'}, and static_graph_class names no class for it"


def _serving(
    runner: StaticGraphRunner, key: SizeKey, plain: Runner, facts: ReplayFacts, program: Program
) -> Runner:
    size = key if isinstance(key, int) else key[0]
    serve, size = runner.serve, size if program.sizes.dispatch is not None else 1

    def call(*args: Any) -> tuple[Any, ...]:
        result: tuple[Any, ...] = serve(size, args, plain)
        return result

    return call


def _captured_line(program: Program, facts: ReplayFacts) -> Runner:
    # The text is this library's own: written at the trace, or read from where the store verified it.
    key_of: Callable[..., SizeKey] = eval(f"lambda args: {facts.key}", {"__builtins__": {}})
    lines = program.capture_table

    def line(*args: Any) -> tuple[Any, ...]:
        return lines.find(key_of(args))(*args)

    return line


def _function(given: Any) -> Callable[..., Any] | None:
    if not isinstance(given, str):
        return given if callable(given) else None
    module, _, name = given.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "cudagraph_uniform_when names nothing that can be imported",
            expected="the dotted name of a function",
            got=f"{given!r}: {error}",
            hint="check the spelling, or give the function itself",
        ) from error
    return found
