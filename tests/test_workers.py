"""Worker processes, with tasks that say where they ran."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.test_pool import SaysWhere
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.pool import CompilePool
from torch_piecewise.worker import WorkerError
from torch_piecewise.workers import Workers, shared_workers


@dataclass(frozen=True)
class Says:
    """A task that answers with its process, and how often a task ran there."""

    def run(self) -> tuple[Any, float]:
        _runs.append(1)
        return (os.getpid(), len(_runs)), 0.0


@dataclass(frozen=True)
class Warms:
    """Wants workers of its own."""

    def run(self) -> tuple[Any, float]:
        pool = CompilePool(workers=2)
        pool.warm_up(SaysWhere(), CompileOptions(), frozenset())
        return shared_workers().waiting(), 0.0


@dataclass(frozen=True)
class Dies:
    def run(self) -> tuple[Any, float]:
        os._exit(3)


@dataclass(frozen=True)
class Fails:
    def run(self) -> tuple[Any, float]:
        raise ValueError("it does not work")


_runs: list[int] = []
PREPARATION = pickle.dumps(Says())


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


def test_a_worker_is_made_before_it_is_wanted_and_serves_one_after_the_other(workers: Workers) -> None:
    workers.warm(1, PREPARATION)
    workers.warm(1, PREPARATION)
    assert workers.waiting() == 1
    seen = []
    for _ in range(2):
        with workers.lent(PREPARATION) as worker:
            assert workers.waiting() == 0
            seen.append(worker.run(PREPARATION)[0])
    (first, first_count), (second, second_count) = seen
    assert first == second != os.getpid()
    assert (first_count, second_count) == (2, 3)  # the preparation was the first


def test_a_failing_task_is_an_answer_and_a_dying_worker_is_not_lent_again(workers: Workers) -> None:
    with workers.lent(PREPARATION) as worker:
        result, _seconds = worker.run(pickle.dumps(Fails()))
        assert "it does not work" in str(result)
    assert workers.waiting() == 1
    with pytest.raises(WorkerError, match="exit status"), workers.lent(PREPARATION) as worker:
        worker.run(pickle.dumps(Dies()))
    assert workers.waiting() == 0


def test_a_worker_that_dies_while_it_waits_is_replaced(workers: Workers) -> None:
    with workers.lent(PREPARATION) as worker:
        (first, _), _ = worker.run(PREPARATION)
    os.kill(first, 9)
    while worker.is_alive():
        time.sleep(0.01)
    with workers.lent(PREPARATION) as other:
        assert other.run(PREPARATION)[0][0] != first


def test_a_worker_made_under_another_environment_is_not_lent(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.warm(1, PREPARATION)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    assert workers.waiting() == 0


def test_a_worker_that_nobody_borrows_ends() -> None:
    workers = Workers(idle_seconds=0.2)
    with workers.lent(PREPARATION) as worker:
        assert worker.is_alive()
    deadline = time.monotonic() + 20
    while worker.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.is_alive()
    assert workers.waiting() == 0


def test_a_worker_starts_no_workers(workers: Workers) -> None:
    with workers.lent(PREPARATION) as worker:
        assert worker.run(pickle.dumps(Warms()))[0] == 0


def test_all_programs_of_a_process_share_workers() -> None:
    assert shared_workers() is shared_workers()
