"""Static graphs while better pieces come: what was captured serves on, and is captured anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch

from tests.static_models import Rows, compiled
from torch_piecewise.artifact import Artifact, LiveArtifact
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.compilers.eager import live_runnable
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range

pytestmark = pytest.mark.usefixtures("no_grad")


class First:
    """A compiler whose pieces tell that they ran; while a graph replays, the recorder runs them again."""

    name = "first"
    gate: ClassVar[threading.Semaphore] = threading.Semaphore(0)
    ran: ClassVar[list[str]] = []

    def fingerprint(self) -> str:
        return self.name

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        self.gate.acquire()

        def run(*args: Any) -> Any:
            First.ran.append(self.name)
            return piece.graph.forward(*args)

        return LiveArtifact(self.name, piece.name, range, runnable=run)

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        return live_runnable(artifact, self.name)


class Better(First):
    name = "better"
    gate: ClassVar[threading.Semaphore] = threading.Semaphore(0)


HERE = "tests.test_static_calls_swapped"
TIERED: dict[str, Any] = {
    "backend": f"{HERE}.First",
    "upgrade_to": f"{HERE}.Better",
    "cudagraph_num_of_warmups": 0,
    "cudagraph_capture_sizes": [4],
}
PIECES = 3  # all three of them differ


@pytest.fixture(autouse=True)
def _fresh_gates() -> Iterator[None]:
    First.ran.clear()
    First.gate, Better.gate = threading.Semaphore(100), threading.Semaphore(0)
    yield
    Better.gate.release(100)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def let_better_in(handle: Any) -> None:
    Better.gate.release(100)
    until(lambda: not handle._serving.background.is_busy)


def ran(model: Any, reference: Any) -> set[str]:
    """Whose pieces ran in one call, whose result is right."""
    First.ran.clear()
    x = torch.randn(4, 8)
    assert torch.equal(model(x), reference(x))
    return set(First.ran)


def test_calls_capture_anew_once_all_better_pieces_are_there() -> None:
    model, reference, handle = compiled(Rows(), **TIERED)
    assert ran(model, reference) == {"first"}
    assert ran(model, reference) == {"first"}
    Better.gate.release(1)
    time.sleep(0.1)
    with handle.counters.expect(sizes_captured=0, calls_replayed=1):
        assert ran(model, reference) == {"first"}  # as captured: what it was captured with is still right
    let_better_in(handle)
    with handle.counters.expect(sizes_captured=1):
        assert ran(model, reference) == {"better"}
    with handle.counters.expect(sizes_captured=0, calls_replayed=1):
        assert ran(model, reference) == {"better"}


def test_with_capture_kept_to_warmup_the_old_graphs_serve_until_the_next_one() -> None:
    model, reference, handle = compiled(Rows(), **TIERED, capture_only_in_warmup=True)
    model(torch.randn(4, 8))
    handle.warmup()
    let_better_in(handle)
    with handle.counters.expect(sizes_captured=0, calls_replayed=2):
        assert ran(model, reference) == {"first"}
        assert ran(model, reference) == {"first"}
    with handle.counters.expect(sizes_captured=1):
        handle.warmup()
    with handle.counters.expect(sizes_captured=0, calls_replayed=1):
        assert ran(model, reference) == {"better"}
    with handle.counters.expect(sizes_captured=0):
        handle.warmup()


def test_captures_between_calls_replace_the_old_graphs() -> None:
    model, reference, handle = compiled(Rows(), **TIERED, cudagraph_capture="between_calls")
    ran(model, reference)
    assert handle.static_graphs.capture_pending() == 1
    let_better_in(handle)
    with handle.counters.expect(calls_replayed=1):
        assert ran(model, reference) == {"first"}
    assert handle.static_graphs.capture_pending() == 1
    with handle.counters.expect(calls_replayed=1):
        assert ran(model, reference) == {"better"}
    assert handle.static_graphs.capture_pending() == 0


def test_what_is_compiled_in_the_background_is_captured_when_it_is_there() -> None:
    First.gate = threading.Semaphore(0)
    fields = {**TIERED, "upgrade_to": None, "on_miss": "background"}
    model, reference, handle = compiled(Rows(), **{**fields, "disable_cache": False})
    x = torch.randn(4, 8)
    assert torch.equal(model(x), reference(x))
    until(lambda: len(handle.entries) == 1)
    assert ran(model, reference) == set()
    with handle.counters.expect(calls_replayed=1):
        assert ran(model, reference) == set()  # captured as it was traced
    First.gate.release(100)
    until(lambda: not handle._serving.background.is_busy)
    with handle.counters.expect(sizes_captured=1):
        assert ran(model, reference) == {"first"}
    with handle.counters.expect(calls_replayed=1):
        assert ran(model, reference) == {"first"}


def test_a_captured_plan_keeps_the_code_that_it_was_captured_from() -> None:
    model, _reference, handle = compiled(Rows(), **{**TIERED, "cudagraph_mode": "piecewise"})
    model(torch.randn(4, 8))
    (runner,) = handle.static_graphs._runners.values()
    (captured,) = runner._sizes._captured.values()
    assert len(captured.plan.kept) == PIECES
    assert set(captured.plan.kept) == set(handle.entries[0].program.callables(4).values())


def test_threads_get_right_results_while_pieces_are_swapped_under_captures() -> None:
    model, reference, _handle = compiled(Rows(), **{**TIERED, "cudagraph_capture_sizes": [2, 4, 8]})
    wrong: list[int] = []
    stop = threading.Event()

    def call() -> None:
        with torch.no_grad():
            while not stop.is_set():
                x = torch.randn(int(torch.randint(1, 9, ())), 8)
                if not torch.allclose(model(x), reference(x), atol=1e-6):
                    wrong.append(len(x))

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(PIECES):
            time.sleep(0.05)
            Better.gate.release()
        Better.gate.release(100)  # where a size was traced apart, its pieces have better ones too
        until(lambda: "better" in First.ran[-3:])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_piece_measured_to_be_slow_is_captured_as_it_runs_then() -> None:
    model, reference, handle = compiled(Rows(), **{**TIERED, "upgrade_to": None})
    ran(model, reference)
    program = handle.entries[0].program
    program.run_eagerly(list(program.made()))
    with handle.counters.expect(sizes_captured=1):
        assert ran(model, reference) == set()
