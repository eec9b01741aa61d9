"""Distinct pieces x ranges, compiled here and on worker processes at once."""

from __future__ import annotations

import contextvars
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from torch_piecewise.compilers.base import CompileOptions, Compiler
from torch_piecewise.errors import CompileError, CompilerError, FingerprintError
from torch_piecewise.graph_bytes import to_bytes
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range
from torch_piecewise.torch_private.settings import compiling, is_compiling
from torch_piecewise.worker import WorkerError, is_worker
from torch_piecewise.workers import Workers, shared_workers

logger = logging.getLogger("torch_piecewise")


class Outcome(NamedTuple):
    """How a task ended.

    Attributes:
        result: the artifact, or the exception.
        seconds: how long it took; of two steps, without what lay between them.
        ended: on ``time.monotonic``'s clock of this process.
    """

    result: Any
    seconds: float
    ended: float


_LOOK_UP_SECONDS = 0.1

_AT_ONCE = max(8, os.cpu_count() or 1)
"""Tasks that are finished at once: the C++ compilers that run at once torch limits by itself."""

WORTH_A_WORKER = 3
"""Tasks for each worker started: a worker costs about as long to start as two small pieces to compile. A
compiler whose pieces take longer says ``tasks_worth_a_worker``."""


@dataclass(frozen=True)
class CompileTask:
    """One call of a compiler."""

    compiler: Compiler
    piece: Piece
    range: Range
    options: CompileOptions

    def run(self) -> Outcome:
        """Compile in this process."""
        begun = self.begin()
        return begun() if callable(begun) else begun

    def begin(self) -> Outcome | Callable[[], Outcome]:
        """Do what has to be done on this thread; a function that is returned does the rest, on any."""
        in_two_steps = _compiles_in_two_steps(type(self.compiler))
        step = self.compiler.begin if in_two_steps else self.compiler.compile  # type: ignore[attr-defined]
        with compiling(), self.options.context(self.range):
            begun = _outcome_of(lambda: step(self.piece, self.range, self.options))
        if not in_two_steps or isinstance(begun.result, Exception):
            return begun
        if not callable(begun.result):
            return begun._replace(result=_no_second_step(self.compiler.name, begun.result))
        return lambda: _outcome_of(begun.result, begun.seconds)


def _compiles_in_two_steps(kind: type) -> bool:
    """Whether it has ``begin``, and no ``compile`` of its own above the class that ``begin`` is from."""
    for base in kind.__mro__:
        if "begin" in vars(base) or "compile" in vars(base):
            return "begin" in vars(base)
    return False


def _no_second_step(compiler: str, begun: object) -> CompilerError:
    return CompilerError(
        f"Compiler {compiler!r} began a piece and returned no second step",
        expected="a function without arguments that returns the artifact",
        got=repr(begun),
        hint="Compiler.begin(piece, range, options) has to return one; compile(...) alone does too",
    )


def _outcome_of(step: Callable[[], Any], seconds_before: float = 0.0) -> Outcome:
    """What ``step`` returns, or the exception it ends with."""
    start = time.monotonic()
    try:
        result = step()
    except Exception as error:  # noqa: BLE001 - the manager knows the policy
        result = error
    ended = time.monotonic()
    return Outcome(result, seconds_before + ended - start, ended)


@dataclass(frozen=True)
class _InWorker:
    """A task as it is sent away: torch is set there as it is here."""

    task: CompileTask
    passes: str

    @classmethod
    def of(cls, task: CompileTask) -> _InWorker:
        return cls(task, _passes(task.options))

    def run(self) -> Outcome:
        if _passes(self.task.options) != self.passes:
            # A worker lives long: the code of a pass may have been loaded anew where the task comes from.
            raise RuntimeError("the passes do something else here")
        self.task.options.ambient.apply_to_process()
        return self.task.run()


@dataclass(frozen=True)
class Preparation:
    """What comes before the first task of a compiler: begin what it needs once."""

    compiler: Compiler
    options: CompileOptions
    devices: frozenset[str]

    def run(self) -> Outcome:
        warm_up = getattr(self.compiler, "warm_up", lambda _options, _devices: None)
        return _outcome_of(lambda: warm_up(self.options, self.devices))


class CompilePool:
    """Runs compile tasks, on worker processes beside this one where that pays.

    A worker is a fresh interpreter (never a fork of a process that may hold a GPU) and does not import the
    user's main module. What fails there for any reason is compiled here instead, so a worker can make a
    start faster but never make it fail.

    Args:
        workers: processes to start at most, beside this one; 0 compiles everything here.
        on_progress: called with (done, total, seconds) after each task.
        lender: where workers come from; None for those that the whole process shares.
        stopped: given for work in the background: what a worker can do is never done here, and once it
            returns True nobody waits any longer.
    """

    def __init__(
        self,
        workers: int = 0,
        on_progress: Callable[[int, int, float], None] | None = None,
        lender: Workers | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> None:
        # A worker imports the compiler's module, which may call a compiled model.
        self._limit = 0 if is_worker() else workers if stopped is None else max(workers, 1)
        self._stopped = stopped
        self._on_progress = on_progress
        self._lender = lender if lender is not None else shared_workers()

    def warm_up(self, compiler: Compiler, options: CompileOptions, devices: frozenset[str]) -> None:
        """Begin what the compiler needs once, because there will be something to compile soon.

        Where one task is worth a worker, a worker does; else this process.

        Args:
            devices: types of the devices that will be compiled for.
        """
        preparation = Preparation(compiler, options, devices)
        can_travel = getattr(compiler, "can_compile_in_worker", False)
        if not self._limit or not can_travel or _worth_of(compiler) > 1:
            result = preparation.run().result
            if isinstance(result, Exception):  # whatever it is, the first task meets it again
                logger.debug("nothing was prepared: %s", result)
            return
        try:
            self._lender.warm(1, to_bytes(preparation))
        except FingerprintError as error:
            logger.debug("no worker can compile under these settings: %s", error.got)

    def run(self, tasks: Sequence[CompileTask]) -> list[Outcome]:
        """Run all tasks; outcomes in the order of ``tasks``.

        Raises:
            CompileError: the process is about to end, and the work was in the background.
        """
        portable = [_portable(task) for task in tasks]
        travelling = sum(task is not None for task in portable)
        worth = travelling // _worth_a_worker(tasks) if self._stopped is None else 1
        count = min(self._limit, travelling, max(worth, self._lender.waiting()))
        run = _Run(tasks, portable, self._on_progress, self._lender)
        threads = [threading.Thread(target=run.serve_worker, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        run.serve_here(everything=self._stopped is None)
        for thread in threads:
            self._wait_for(thread)
        run.finish()
        return [run.outcomes[index] for index in range(len(tasks))]

    def _wait_for(self, thread: threading.Thread) -> None:
        if self._stopped is None:
            thread.join()
            return
        while thread.is_alive():
            thread.join(_LOOK_UP_SECONDS)
            if self._stopped():
                raise CompileError("The process ends before its background work does")


def _portable(task: CompileTask) -> bytes | None:
    """The task as a worker wants it; None where it cannot travel."""
    if not getattr(task.compiler, "can_compile_in_worker", False):
        return None
    try:
        return to_bytes(_InWorker.of(task))
    except FingerprintError as error:
        logger.debug("%s cannot be compiled on a worker: %s", task.piece.name, error.got)
        return None


def _worth_a_worker(tasks: Sequence[CompileTask]) -> int:
    return min((_worth_of(task.compiler) for task in tasks), default=1)


def _worth_of(compiler: Compiler) -> int:
    return getattr(compiler, "tasks_worth_a_worker", WORTH_A_WORKER)


def _passes(options: CompileOptions) -> str:
    return "" if options.passes is None else options.passes.fingerprint()


class _Finishing:
    """Threads for the second halves of tasks, which mostly wait for processes; left when all are done."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._futures: list[Future[None]] = []

    def add(self, function: Callable[[], None]) -> None:
        """Have ``function`` called; here, where another thread might wait for what this one holds."""
        if is_compiling():
            function()
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_AT_ONCE, "torch-piecewise-finish")
        # Settings of torch are the context's (2.13).
        context = contextvars.copy_context()
        try:
            self._futures.append(self._threads.submit(context.run, function))
        except RuntimeError:  # the interpreter is ending and starts no threads
            function()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._threads is None:
            return
        try:
            if kind is None:
                for future in self._futures:
                    future.result()
        finally:
            # Interrupted, here or before, nobody wants the rest.
            self._threads.shutdown(wait=False, cancel_futures=True)


class _Run:
    """One batch: a queue that this process empties from its front, workers from its back."""

    def __init__(
        self,
        tasks: Sequence[CompileTask],
        portable: Sequence[bytes | None],
        on_progress: Callable[[int, int, float], None] | None,
        lender: Workers,
    ) -> None:
        self.tasks = tasks
        self._lender = lender
        self.portable = portable
        self.outcomes: dict[int, Outcome] = {}
        self._waiting = list(range(len(tasks)))
        self._failed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._on_progress = on_progress

    def _take(self, wanted: Callable[[bool], bool], *, last: bool = False) -> int | None:
        """The first (or last) task that waits and that is wanted, told whether it can travel."""
        with self._lock:
            for index in reversed(self._waiting) if last else iter(self._waiting):
                if wanted(self.portable[index] is not None):
                    self._waiting.remove(index)
                    return index
        return None

    def _record(self, index: int, outcome: Outcome) -> None:
        with self._lock:
            self.outcomes[index] = outcome
            done = len(self.outcomes)
        if self._on_progress is not None:
            self._on_progress(done, len(self.tasks), outcome.seconds)

    def serve_here(self, *, everything: bool = True) -> None:
        """Compile in this process until nothing waits; or nothing but what a worker can compile."""
        with _Finishing() as finishing:
            while (index := self._take(lambda portable: everything or not portable)) is not None:
                begun = self.tasks[index].begin()
                if callable(begun):
                    finishing.add(functools.partial(self._finish, index, begun))
                else:
                    self._record(index, begun)

    def _finish(self, index: int, rest: Callable[[], Outcome]) -> None:
        self._record(index, rest())

    def serve_worker(self) -> None:
        """Hand a worker tasks until nothing waits."""
        index: int | None = None
        try:
            with self._lender.lent(self._preparation()) as worker:
                while (index := self._take(bool, last=True)) is not None:
                    payload = self.portable[index]
                    assert payload is not None
                    result, seconds, *_ = worker.run(payload)
                    if isinstance(result, Exception):
                        self._failed.put(index)
                    else:
                        self._record(index, Outcome(result, seconds, time.monotonic()))
        except WorkerError as error:
            logger.debug("a compile worker ended: %s", error)
            if index is not None:
                self._failed.put(index)

    def _preparation(self) -> bytes:
        task = next(task for task, bytes_ in zip(self.tasks, self.portable, strict=True) if bytes_)
        return to_bytes(Preparation(task.compiler, task.options, frozenset()))

    def finish(self) -> None:
        """Compile here what workers failed at."""
        while not self._failed.empty():
            index = self._failed.get()
            self._record(index, self.tasks[index].run())


def default_workers(compile_threads: int | None) -> int:
    """Worker processes beside this one: one less than the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max((compile_threads or cores) - 1, 0)
