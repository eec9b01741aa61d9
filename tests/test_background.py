"""Compiling beside the calls: eager first, then piece by piece, then the better compiler's."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from torch_piecewise.artifact import Artifact, LiveArtifact
from torch_piecewise.background import Background
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.compilers.eager import live_runnable
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range


class Gated:
    """A compiler that waits to be let through, and whose pieces tell that they ran."""

    name = "gated"
    gate: ClassVar[threading.Semaphore] = threading.Semaphore(0)
    ran: ClassVar[list[str]] = []

    def fingerprint(self) -> str:
        return self.name

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        self.gate.acquire()
        if piece.graph.graph.find_nodes(op="call_function", target=torch.tan):
            raise ValueError("no tangents here")

        def run(*args: Any) -> Any:
            self.ran.append(f"{self.name} {piece.name}")
            return piece.graph.forward(*args)

        return LiveArtifact(self.name, piece.name, range, runnable=run)

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        return live_runnable(artifact, self.name)


class Better(Gated):
    name = "better"
    gate: ClassVar[threading.Semaphore] = threading.Semaphore(0)


@tp.splitting_op("background_test::scale", fake=torch.empty_like)
def scale(x: Tensor) -> Tensor:
    """Twice ``x``."""
    return x * 2


class Three(torch.nn.Module):
    """Two pieces that differ, around a cut."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(scale(torch.sin(x) + 1)) * 3


SETTINGS: dict[str, Any] = {
    "backend": "tests.test_background.Gated",
    "on_miss": "background",
    "splitting_ops": ["background_test::scale"],
    "dynamic_arg_dims": {"x": 0},
}


@pytest.fixture(autouse=True)
def _fresh_gates(no_grad: None) -> Iterator[None]:
    for compiler in (Gated, Better):
        compiler.ran.clear()
        compiler.gate = threading.Semaphore(0)
    yield
    for compiler in (Gated, Better):
        compiler.gate.release(1000)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ran(model: Any, x: Tensor) -> list[str]:
    """The pieces that ran compiled in one call, whose result is right."""
    Gated.ran.clear()
    assert torch.equal(model(x), torch.cos((torch.sin(x) + 1) * 2) * 3)
    return list(Gated.ran)


def test_calls_are_served_eagerly_and_each_piece_is_swapped_in_when_it_is_ready() -> None:
    model = tp.compile(Three(), **SETTINGS)
    x = torch.randn(3, 4)
    assert ran(model, x) == []
    handle = tp.program_of(model)
    until(lambda: len(handle.entries) == 1)
    assert ran(model, x) == []
    Gated.gate.release()
    until(lambda: len(ran(model, x)) == 1)
    Gated.gate.release()
    until(lambda: len(ran(model, x)) == 2)
    assert handle.stats.traces == 1
    assert handle.stats.artifacts_compiled == 2


def settled(handle: Any) -> Any:
    until(lambda: not handle._serving.background.is_busy)
    return handle.stats


def test_the_time_that_the_background_compiles_is_counted() -> None:
    model = tp.compile(Three(), **SETTINGS)
    model(torch.randn(3, 4))
    handle = tp.program_of(model)
    until(lambda: len(handle.entries) == 1)
    waits = 0.05
    until(lambda: handle.counters["compiles_started"] == 1)
    assert handle.stats.compile_seconds == 0
    time.sleep(waits)
    Gated.gate.release(2)
    assert settled(handle).compile_seconds >= waits


def test_the_time_that_the_better_compiler_takes_is_counted() -> None:
    Gated.gate.release(100)
    settings = {**SETTINGS, "on_miss": "compile", "upgrade_to": "tests.test_background.Better"}
    model = tp.compile(Three(), **settings)
    model(torch.randn(3, 4))
    handle, waits = tp.program_of(model), 0.05
    before = handle.stats.compile_seconds
    assert before > 0
    until(lambda: handle.counters["compiles_started"] == 3)
    time.sleep(waits)
    Better.gate.release(2)
    assert settled(handle).compile_seconds >= before + waits


def test_pieces_that_wait_for_the_background_are_not_counted_as_eager_and_failed_ones_are() -> None:
    class Tangent(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cos(scale(torch.tan(x)))

    model = tp.compile(Tangent(), **SETTINGS)
    model(torch.randn(3, 4))
    handle = tp.program_of(model)
    until(lambda: len(handle.entries) == 1)
    assert handle.stats.eager_pieces == 0
    Gated.gate.release(2)
    assert settled(handle).eager_pieces == 1
    assert handle.wait(60) is False


def test_waiting_tells_whether_everything_is_compiled() -> None:
    model = tp.compile(Three(), **SETTINGS)
    model(torch.randn(3, 4))
    handle = tp.program_of(model)
    until(lambda: len(handle.entries) == 1)
    assert handle.wait(0.01) is False
    Gated.gate.release(2)
    assert handle.wait(60) is True


def test_waiting_tells_of_work_that_crashed_and_of_calls_that_cannot_be_traced() -> None:
    Gated.gate.release(100)
    model = tp.compile(Three(), **SETTINGS)
    model(torch.randn(3, 4))
    handle = tp.program_of(model)
    assert handle.wait(60) is True
    handle._serving.background.add(lambda: int("crash") and None)
    assert handle.wait(60) is False

    def breaks(x: Tensor) -> Tensor:
        return x + 1 if x.sum().item() > 0 else x - 1

    call = tp.compile(breaks, **SETTINGS)
    call(torch.randn(4).abs())
    assert tp.program_of(call).wait(60) is False


def test_a_piece_that_the_better_compiler_refuses_is_compiled_all_the_same() -> None:
    class Tangent(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cos(scale(torch.tan(x)))

    Better.gate.release(100)
    settings = {**SETTINGS, "backend": "eager", "upgrade_to": "tests.test_background.Better"}
    model = tp.compile(Tangent(), **{**settings, "on_miss": "compile"})
    model(torch.randn(3, 4))
    assert tp.program_of(model).wait(60) is True


@pytest.mark.parametrize("on_miss", ["compile", "background"])
def test_a_piece_that_may_stay_eager_is_named_once_and_is_not_compiled(
    on_miss: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Tangent(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cos(scale(torch.tan(x)))

    Gated.gate.release(100)
    model = tp.compile(Tangent(), **{**SETTINGS, "on_miss": on_miss}, on_piece_error="eager")
    for n in (3, 4):
        model(torch.randn(n, 4))
        assert tp.program_of(model).wait(60) is False
    told = [(one.levelname, one.getMessage()) for one in caplog.records if one.name == "torch_piecewise"]
    warnings = [text for level, text in told if level == "WARNING"]
    assert warnings == ["submod_0 [1, inf] stays as it is: no tangents here"]


def test_calls_that_come_while_a_trace_is_made_do_not_wait_for_it() -> None:
    model = tp.compile(Three(), **SETTINGS)
    handle = tp.program_of(model)
    with handle._serving.lock:  # as if a trace were being made on another thread
        done: list[bool] = []
        thread = threading.Thread(target=lambda: done.append(bool(model(torch.randn(2, 2)).numel())))
        thread.start()
        thread.join(30)
        assert done == [True]


def test_a_piece_that_fails_stays_eager_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    class Tangent(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cos(scale(torch.tan(x)))

    model = tp.compile(Tangent(), **SETTINGS)
    Gated.gate.release(2)
    x = torch.randn(3, 4)
    model(x)
    until(lambda: tp.program_of(model)._serving.background.is_busy is False)
    Gated.ran.clear()
    assert torch.equal(model(x), torch.cos(torch.tan(x) * 2))
    assert len(Gated.ran) == 1
    assert "stays as it is" in caplog.text
    assert "no tangents here" in caplog.text


def test_a_model_that_cannot_be_traced_stays_eager_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def breaks(x: Tensor) -> Tensor:
        return x + 1 if x.sum().item() > 0 else x - 1

    call = tp.compile(breaks, **SETTINGS)
    for _ in range(3):
        x = torch.randn(4).abs()
        assert torch.equal(call(x), x + 1)
        until(lambda: not tp.program_of(call)._serving.background.is_busy)
    assert caplog.text.count("calls stay eager") == 1


def test_what_is_awaited_is_told_when_the_background_is_done() -> None:
    told: list[str] = []
    with tp.set_on_compilation_complete(lambda: told.append("ready")):
        model = tp.compile(Three(), **SETTINGS)
        model(torch.randn(3, 4))
        until(lambda: len(tp.program_of(model).entries) == 1)
        Gated.gate.release(1)
        time.sleep(0.05)
        assert told == []
        Gated.gate.release(1)
        until(lambda: told == ["ready"])


def test_better_pieces_replace_the_first_ones_one_by_one() -> None:
    Gated.gate.release(100)
    settings = {**SETTINGS, "on_miss": "compile", "upgrade_to": "tests.test_background.Better"}
    model = tp.compile(Three(), **settings)
    x = torch.randn(3, 4)
    kinds = sorted(one.split()[0] for one in ran(model, x))
    assert kinds == ["gated", "gated"]
    Better.gate.release()
    until(lambda: sorted(one.split()[0] for one in ran(model, x)) == ["better", "gated"])
    Better.gate.release()
    until(lambda: sorted(one.split()[0] for one in ran(model, x)) == ["better", "better"])


def test_outputs_stay_right_while_threads_call_and_pieces_are_swapped() -> None:
    model = tp.compile(Three(), **{**SETTINGS, "upgrade_to": "tests.test_background.Better"})
    wrong: list[str] = []
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            x = torch.randn(int(torch.randint(1, 9, ())), 4)
            with torch.no_grad():
                if not torch.equal(model(x), torch.cos((torch.sin(x) + 1) * 2) * 3):
                    wrong.append("differs")

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for compiler in (Gated, Gated, Better, Better):
        time.sleep(0.05)
        compiler.gate.release()
    until(lambda: "better" in {one.split()[0] for one in Gated.ran[-4:]})
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_jobs_run_in_order_with_the_settings_of_who_asked() -> None:
    seen: list[Any] = []
    background = Background("test")
    with torch.inference_mode():
        background.add(lambda: seen.append(torch.is_inference_mode_enabled()))
    with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        background.add(lambda: seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"))))
    background.add(lambda: seen.append(torch.is_grad_enabled()))
    assert background.wait(30)
    assert seen == [True, (True, True), False]


def test_a_job_that_fails_is_logged_and_the_next_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []
    background = Background("test")
    background.add(lambda: seen.append(1 // 0))
    background.add(lambda: seen.append(2))
    assert background.wait(30)
    assert seen == [2]
    assert "ZeroDivisionError" in caplog.text


ENDS = """
import sys, time, torch
import torch_piecewise as tp
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval()
dims = {"input": 0}
tp.compile(model, on_miss="background", dynamic_arg_dims=dims, splitting_ops=[], cache_dir=sys.argv[1])
with torch.no_grad():
    model(torch.randn(3, 4))
time.sleep(float(sys.argv[2]))
print("end")
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 1.0, 3.0, 5.0])
def test_the_process_ends_cleanly_whatever_the_background_does(tmp_path: Path, seconds: float) -> None:
    command = [sys.executable, "-c", ENDS, str(tmp_path), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["end"]), done.stderr
    assert "Traceback" not in done.stderr
    assert "terminate" not in done.stderr
