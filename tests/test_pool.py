from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from torch_piecewise import pool
from torch_piecewise.artifact import Artifact
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.errors import CompilerError
from torch_piecewise.graph_bytes import from_bytes
from torch_piecewise.passes.plan import PassPlan
from torch_piecewise.piece import Piece
from torch_piecewise.pool import CompilePool, CompileTask, _portable, default_workers
from torch_piecewise.ranges import Range
from torch_piecewise.worker import Worker, WorkerError
from torch_piecewise.workers import Workers


class SaysWhere:
    """A compiler whose artifacts say in which process they were made."""

    name = "says_where"
    can_compile_in_worker = True

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        if piece.name == "fails":
            raise ValueError("this piece cannot be compiled")
        if piece.name == "kills the worker" and os.environ.get("PYTEST_CURRENT_TEST") is None:
            os._exit(3)
        if piece.name == "kills the worker":
            return Artifact(self.name, piece.name, range, b"here")
        return Artifact(self.name, piece.name, range, f"{os.getpid()} {torch.get_num_threads()}".encode())


def task(name: str, start: int = 1, compiler: Any = None) -> CompileTask:
    graph = torch.fx.symbolic_trace(torch.nn.ReLU())
    return CompileTask(
        compiler or SaysWhere(), Piece(name, 0, graph, ()), Range(start, start), CompileOptions()
    )


def test_outcomes_come_in_the_order_of_the_tasks() -> None:
    outcomes = CompilePool().run([task("a", n) for n in range(1, 5)])
    assert [artifact.range.start for artifact, *_ in outcomes] == [1, 2, 3, 4]


def test_a_failure_is_an_outcome_and_the_others_go_on() -> None:
    (good, *_), (bad, *_), (also_good, *_) = CompilePool().run([task("a"), task("fails"), task("b")])
    assert isinstance(bad, ValueError)
    assert good.payload and also_good.payload


def test_progress_is_told_after_each_task() -> None:
    told: list[tuple[int, int]] = []
    CompilePool(on_progress=lambda done, total, _s: told.append((done, total))).run([task("a"), task("b")])
    assert told == [(1, 2), (2, 2)]


def test_a_task_that_cannot_travel_is_compiled_here() -> None:
    class Local(SaysWhere):
        pass

    outcomes = CompilePool(workers=2).run([task("a", n, Local()) for n in range(1, 8)])
    assert {int(artifact.payload.split()[0]) for artifact, *_ in outcomes} == {os.getpid()}


@pytest.mark.slow
def test_workers_share_the_work_and_their_faults_cost_nothing() -> None:
    slow_here = threading.Event()

    class Slow(SaysWhere):
        name = "says_where"

        def __reduce__(self) -> Any:
            return (SaysWhere, ())

        def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
            slow_here.wait(3.0)
            return super().compile(piece, range, options)

    names = ["a", "b", "c", "kills the worker", "d", "fails", "e"]
    outcomes = CompilePool(workers=1).run([task(name, n + 1, Slow()) for n, name in enumerate(names)])
    assert isinstance(outcomes[5][0], ValueError)
    made = [artifact.payload for artifact, *_ in outcomes if isinstance(artifact, Artifact)]
    assert len(made) == 6
    assert len({payload.split()[0] for payload in made}) > 1


def test_workers_are_one_fewer_than_the_threads_asked_for() -> None:
    assert default_workers(1) == 0
    assert default_workers(4) == 3
    assert default_workers(None) >= 0


def looks(graph: torch.fx.Graph) -> int:
    return 0


def with_passes(*passes: Any) -> CompileTask:
    made = task("a")
    return dataclasses.replace(made, options=CompileOptions(passes=PassPlan().and_(passes)))


def test_a_task_travels_with_passes_that_can_be_imported_elsewhere() -> None:
    payload = _portable(with_passes(looks))
    assert payload is not None
    artifact = from_bytes(payload).run()[0]
    assert artifact.compiler == "says_where"


def test_a_task_with_a_pass_that_exists_only_here_stays_here() -> None:
    assert _portable(with_passes(lambda graph: 0)) is None
    CompilePool(workers=1).warm_up(SaysWhere(), with_passes(lambda graph: 0).options, frozenset({"cpu"}))


def test_a_worker_with_other_code_of_a_pass_refuses_the_task() -> None:
    payload = _portable(with_passes(looks))
    assert payload is not None
    sent = dataclasses.replace(from_bytes(payload), passes="as they were before an edit")
    with pytest.raises(RuntimeError, match="the passes do something else here"):
        sent.run()


class Costly(SaysWhere):
    """A compiler whose pieces take long."""

    tasks_worth_a_worker = 1


class Counting(Workers):
    """Lends nothing, and counts how often it was asked."""

    asked = 0

    def lent(self, preparation: bytes) -> AbstractContextManager[Worker]:
        self.asked += 1
        raise WorkerError("none today")


@pytest.mark.parametrize(("compiler", "count"), [(SaysWhere(), 1), (Costly(), 5)])
def test_a_compiler_says_how_many_tasks_are_worth_a_worker(compiler: Any, count: int) -> None:
    lender = Counting()
    outcomes = CompilePool(workers=8, lender=lender).run([task("a", n, compiler) for n in range(1, 6)])
    assert lender.asked == count
    assert all(outcome.result.payload for outcome in outcomes)


class TwoSteps(SaysWhere):
    """Notes which thread does what; the second step of the first piece waits for the last piece's first."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []
        self.last_begun = threading.Event()

    def __reduce__(self) -> Any:
        raise TypeError("stays here")

    def begin(self, piece: Piece, range: Range, options: CompileOptions) -> Callable[[], Artifact]:
        if piece.name == "fails at once":
            raise ValueError("this piece cannot be lowered")
        self.steps.append((piece.name, threading.current_thread().name))
        if piece.name == "last":
            self.last_begun.set()
        return lambda: self._finish(piece, range, options)

    def _finish(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        assert self.last_begun.wait(20)
        self.steps.append((f"{piece.name} finished", threading.current_thread().name))
        return self.compile(piece, range, options)


def test_pieces_are_begun_one_after_the_other_and_finished_beside_that() -> None:
    compiler = TwoSteps()
    outcomes = CompilePool().run([task(name, n, compiler) for n, name in enumerate(["a", "b", "last"], 1)])
    assert [artifact.range.start for artifact, *_ in outcomes] == [1, 2, 3]
    here = threading.current_thread().name
    assert compiler.steps[:3] == [("a", here), ("b", here), ("last", here)]
    assert {name for name, _ in compiler.steps[3:]} == {"a finished", "b finished", "last finished"}
    assert here not in {thread for _, thread in compiler.steps[3:]}
    assert all(outcome.seconds > 0 for outcome in outcomes)


def test_either_step_may_fail() -> None:
    compiler = TwoSteps()
    names = ["fails at once", "fails", "last"]
    at_once, later, good = CompilePool().run([task(name, n, compiler) for n, name in enumerate(names, 1)])
    assert "cannot be lowered" in str(at_once.result)
    assert "cannot be compiled" in str(later.result)
    assert good.result.payload


def test_what_is_compiled_within_a_compile_is_finished_on_the_same_thread() -> None:
    """The outer compile may hold a lock that a second step needs."""
    inner = TwoSteps()

    class Nested(SaysWhere):
        def begin(self, piece: Piece, range: Range, options: CompileOptions) -> Callable[[], Artifact]:
            (outcome,) = CompilePool().run([task("last", 1, inner)])
            return lambda: outcome.result

    assert CompilePool().run([task("outer", 1, Nested())])[0].result.payload
    here = threading.current_thread().name
    assert inner.steps == [("last", here), ("last finished", here)]


def test_an_interrupt_is_not_held_up_by_what_has_begun() -> None:
    class Interrupted(TwoSteps):
        def begin(self, piece: Piece, range: Range, options: CompileOptions) -> Callable[[], Artifact]:
            if piece.name == "b":
                raise KeyboardInterrupt
            return super().begin(piece, range, options)

    compiler = Interrupted()
    try:
        with pytest.raises(KeyboardInterrupt):
            CompilePool().run([task(name, n, compiler) for n, name in enumerate("abc", 1)])
        assert [name for name, _ in compiler.steps] == ["a"]
    finally:
        compiler.last_begun.set()


def test_an_interrupt_while_the_second_steps_run_drops_those_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "_AT_ONCE", 1)
    interrupted = threading.Event()

    class Slow(TwoSteps):
        def _finish(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
            self.steps.append((piece.name, "finished"))
            assert interrupted.wait(20)
            return self.compile(piece, range, options)

    def interrupt(_future: Any) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    compiler = Slow()
    monkeypatch.setattr(pool.Future, "result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        CompilePool().run([task(name, n, compiler) for n, name in enumerate("abcdef", 1)])
    time.sleep(0.2)
    assert len([step for step in compiler.steps if step[1] == "finished"]) < 6


def test_a_compile_of_its_own_beats_the_two_steps_of_a_base_class() -> None:
    class Own(TwoSteps):
        def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
            return Artifact(self.name, piece.name, range, b"its own")

    assert CompilePool().run([task("a", 1, Own())])[0].result.payload == b"its own"


def test_one_step_runs_on_the_thread_that_wants_it() -> None:
    class SaysThread(SaysWhere):
        def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
            return Artifact(self.name, piece.name, range, threading.current_thread().name.encode())

        def __reduce__(self) -> Any:
            raise TypeError("stays here")

    outcome = CompilePool().run([task("a", 1, SaysThread())])[0]
    assert outcome.result.payload.decode() == threading.current_thread().name


def test_a_start_in_an_exit_handler_finishes_where_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    compiler = TwoSteps()
    compiler.last_begun.set()
    monkeypatch.setattr(pool.ThreadPoolExecutor, "submit", refuse)
    assert CompilePool().run([task("a", 1, compiler)])[0].result.payload


def test_a_first_step_without_a_second_is_told() -> None:
    class Forgets(TwoSteps):
        def begin(self, piece: Piece, range: Range, options: CompileOptions) -> Any:
            return None

    result = CompilePool().run([task("a", 1, Forgets())])[0].result
    assert isinstance(result, CompilerError)
    assert "returned no second step" in str(result)
