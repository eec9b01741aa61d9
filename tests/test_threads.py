"""Threads: one program called by many, two at once, traces and restores while others run."""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_piecewise as tp
from tests.graphs import Stack

SETTINGS: dict[str, Any] = {"backend": "eager", "splitting_ops": ["tests::attention"]}


@pytest.fixture(autouse=True)
def switching_often() -> Iterator[None]:
    """Threads take turns a hundred times more often than usual, so that races happen here."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def together(*works: Callable[[], None]) -> None:
    """Run each in a thread of its own, all starting at once; raise what the first of them raised."""
    start = threading.Barrier(len(works), timeout=60)
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait()
            with torch.no_grad():
                work()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


class Checked:
    """Calls that compare a compiled model with what its uncompiled copy gave."""

    def __init__(self, model: Any, inputs: list[Tensor]) -> None:
        reference = copy.deepcopy(model)
        with torch.no_grad():
            self.pairs = [(x, reference(x)) for x in inputs]
        self.model = model

    def calls(self, times: int, offset: int = 0) -> Callable[[], None]:
        def work() -> None:
            for number in range(times):
                x, want = self.pairs[(number + offset) % len(self.pairs)]
                assert torch.equal(self.model(x), want)

        return work

    def calls_until(self, done: threading.Event, offset: int = 0) -> Callable[[], None]:
        def work() -> None:
            number = offset
            while not done.is_set():
                x, want = self.pairs[number % len(self.pairs)]
                assert torch.equal(self.model(x), want)
                number += 1

        return work


def stack(depth: int = 2, **fields: Any) -> Checked:
    checked = Checked(Stack(depth), [torch.randint(0, 50, (size,)) for size in (3, 1, 9, 20, 2, 8)])
    tp.compile(checked.model, **{**SETTINGS, **fields})
    return checked


@pytest.mark.parametrize("repetition", range(3))
def test_one_program_from_its_first_call_on_by_eight_threads(repetition: int) -> None:
    checked = stack(compile_ranges_endpoints=[4], compile_sizes=[2, 8])
    with tp.program_of(checked.model).counters.expect(
        graphs_captured=1, artifacts_compiled=3 * 4, recompiles=0
    ):
        together(*(checked.calls(40, offset) for offset in range(8)))


def test_programs_that_are_made_at_once_by_different_threads() -> None:
    models = [stack(depth, compile_sizes=[depth]) for depth in (1, 2, 3, 2)]
    together(*(checked.calls(20) for checked in models for _ in range(2)))
    for checked in models:
        counts = tp.program_of(checked.model).counters
        assert (counts["graphs_captured"], counts["recompiles"]) == (1, 0)


def test_making_programs_at_once_leaves_torchs_settings_as_they_were() -> None:
    import torch._dynamo.config as dynamo_config

    before = dynamo_config.automatic_dynamic_shapes, dynamo_config.assume_static_by_default
    together(*(stack(1).calls(2) for _ in range(6)))
    assert (dynamo_config.automatic_dynamic_shapes, dynamo_config.assume_static_by_default) == before


def test_a_program_beside_torch_compile_in_another_thread() -> None:
    torch._dynamo.reset()
    ours = stack(2)
    theirs = Checked(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), [torch.randn(3, 4), torch.randn(5, 4)])
    theirs.model = torch.compile(theirs.model, backend="eager")
    together(ours.calls(30), theirs.calls(30), ours.calls(30, 1), theirs.calls(30, 1))


class Scaled(nn.Module):
    """Each dtype and each value of ``by`` is a trace of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, by: int = 1) -> Tensor:
        return torch.tanh(x * self.weight.to(x.dtype)) * by


def test_traces_made_while_others_run() -> None:
    model = Scaled()
    compiled = tp.compile(copy.deepcopy(model), backend="eager")
    done = threading.Event()
    inputs = [torch.randn(size, 4) for size in (1, 3, 7)]

    def serve() -> None:
        while not done.is_set():
            for x in inputs:
                assert torch.equal(compiled(x), model(x))

    def trace() -> None:
        try:
            for by in range(2, 8):
                for x in inputs:
                    assert torch.equal(compiled(x.double(), by), model(x.double(), by))
        finally:
            done.set()

    together(serve, serve, serve, trace)
    assert tp.program_of(compiled).stats.traces == 7


def test_two_threads_that_need_different_traces_at_once() -> None:
    model = Scaled()
    compiled = tp.compile(copy.deepcopy(model), backend="eager")
    x = torch.randn(3, 4)

    def calls(by: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(10):
                assert torch.equal(compiled(x, by), model(x, by))

        return work

    together(*(calls(by) for by in (1, 2, 3, 1, 2, 3)))
    assert tp.program_of(compiled).stats.traces == 3


@pytest.mark.parametrize("repetition", range(3))
def test_a_model_restored_and_compiled_again_while_others_call_it(repetition: int) -> None:
    checked, done = stack(1), threading.Event()
    together(checked.calls(6))

    def restore() -> None:
        try:
            for _ in range(20):
                tp.program_of(checked.model).restore()
                time.sleep(0.001)
                tp.compile(checked.model, **SETTINGS)
        finally:
            done.set()

    together(*(checked.calls_until(done, offset) for offset in range(4)), restore)


def test_a_model_restored_between_two_looks_of_torch_at_it_runs_its_own_forward() -> None:
    class Restoring(nn.Linear):
        is_armed = False

        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name == "_compiled_call_impl" and self.is_armed:
                self.is_armed = False
                tp.program_of(self).restore()
            return value

    model = tp.compile(Restoring(4, 4), backend="eager", dynamic_arg_dims={"input": 0})
    model.is_armed = True
    x = torch.randn(3, 4)
    assert torch.equal(model(x), model.forward(x))
    assert not model.is_armed


def test_a_first_call_that_waited_while_the_model_was_restored_runs_uncompiled() -> None:
    def doubled(x: Tensor) -> Tensor:
        return x * 2

    compiled = tp.compile(doubled, backend="eager")
    handle, x, results = tp.program_of(compiled), torch.randn(3), []
    thread = threading.Thread(target=lambda: results.append(compiled(x)))
    with handle._serving.lock:
        thread.start()
        time.sleep(0.2)
        handle.restore()
    thread.join()
    assert torch.equal(results[0], x * 2)
    assert torch.equal(compiled(x.double()), x.double() * 2)
    assert handle.stats.traces == 0


def test_parameters_replaced_while_others_run_are_old_or_new_never_mixed() -> None:
    model = tp.compile(nn.Linear(4, 4, bias=False), backend="eager", dynamic_arg_dims={"input": 0})
    weights = [nn.Parameter(torch.full((4, 4), float(value)), requires_grad=False) for value in (1, 2)]
    x, done = torch.ones(3, 4), threading.Event()
    model.weight = weights[0]
    together(lambda: model(x))

    def serve() -> None:
        while not done.is_set():
            assert model(x).unique().tolist() in ([4.0], [8.0])

    def replace() -> None:
        try:
            for number in range(300):
                model.weight = weights[number % 2]
                time.sleep(0)
        finally:
            done.set()

    together(serve, serve, replace)
    assert tp.program_of(model).stats.traces == 1


@pytest.mark.slow
@pytest.mark.inductor
def test_programs_that_inductor_makes_at_once_are_each_right() -> None:
    models = [nn.Sequential(nn.Linear(4, 4), activation()) for activation in (nn.Tanh, nn.Sigmoid, nn.SiLU)]
    compiled = [
        tp.compile(
            copy.deepcopy(model),
            disable_cache=True,
            compile_threads=1,
            compile_ranges_endpoints=[4],
            dynamic_arg_dims={"input": 0},
        )
        for model in models
    ]
    inputs = [torch.randn(size, 4) for size in (1, 3, 9)]

    def calls(index: int) -> Callable[[], None]:
        def work() -> None:
            for x in inputs:
                torch.testing.assert_close(compiled[index](x), models[index](x))

        return work

    together(*(calls(index) for index in range(3)))
    for one in compiled:
        assert tp.program_of(one).stats.artifacts_compiled == 2


def test_a_trace_never_sees_what_torch_replaces_while_another_thread_lowers() -> None:
    """torch.fx replaces ``Module.__call__`` for the whole process while it traces for Inductor."""
    from torch._dynamo import convert_frame

    from torch_piecewise.torch_private.settings import no_compile_beside, one_compile_at_a_time

    lowering, done = threading.Event(), threading.Event()
    seen: list[str] = []

    def lower() -> None:
        with one_compile_at_a_time():
            lowering.set()
            assert not done.wait(0.3)
            seen.append("lowered")

    def trace() -> None:
        assert lowering.wait(20)
        with no_compile_beside(convert_frame.compile_lock):
            seen.append("traced")
            done.set()

    def plain() -> None:
        """What waits for a compile of this library while it holds Dynamo's lock, as a backend does."""
        assert lowering.wait(20)
        with convert_frame.compile_lock, one_compile_at_a_time():
            seen.append("compiled")

    threads = [threading.Thread(target=work) for work in (lower, trace, plain)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert seen[0] == "lowered"
    assert sorted(seen) == ["compiled", "lowered", "traced"]
