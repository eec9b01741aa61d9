"""``set_on_compilation_complete``: once, when the last range of the last piece is ready."""

from __future__ import annotations

import contextvars
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_piecewise as tp
from tests.graphs import Stack
from torch_piecewise.errors import ConfigError, MissError

pytestmark = pytest.mark.usefixtures("no_grad")

RANGES: dict[str, Any] = {"compile_ranges_endpoints": [4], "compile_sizes": [1]}


def stack(depth: int = 2, **fields: Any) -> Stack:
    return tp.compile(Stack(depth), **{"backend": "eager", "splitting_ops": ["tests::attention"], **fields})


def kept(root: Path) -> dict[str, Any]:
    return {"cache_dir": str(root), "backend": "tests.kept_compiler.KeptEager", **RANGES}


def ids(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 50, (count,))


class Calls:
    """A callback that notes what was compiled when it was called."""

    def __init__(self, *models: Any) -> None:
        self.models = models
        self.ready: list[int] = []

    def __call__(self) -> None:
        self.ready.append(sum(tp.program_of(model).counters["artifacts_loaded"] for model in self.models))


def test_it_is_called_once_when_everything_is_compiled() -> None:
    model = stack(**RANGES)
    calls = Calls(model)
    with tp.set_on_compilation_complete(calls):
        assert calls.ready == []
        for size in (3, 1, 9, 3):
            model(ids(size))
    assert calls.ready == [3 * 3]  # three distinct pieces, two ranges and one exact size


def test_it_is_called_once_when_everything_comes_from_the_store(tmp_path: Path) -> None:
    stack(**kept(tmp_path))(ids())
    model = stack(**kept(tmp_path))
    calls = Calls(model)
    with (
        tp.set_on_compilation_complete(calls),
        tp.program_of(model).counters.expect(
            graphs_captured=0, artifacts_compiled=0, artifacts_loaded_from_store=9
        ),
    ):
        model(ids(3))
        model(ids(9))
    assert calls.ready == [9]


def test_a_start_from_the_store_that_nobody_watches_loads_what_it_needs_alone(tmp_path: Path) -> None:
    stack(**kept(tmp_path))(ids())
    model = stack(**kept(tmp_path))
    with tp.program_of(model).counters.expect(artifacts_loaded_from_store=3):
        model(ids(3))


@pytest.mark.parametrize("repetition", range(3))
def test_it_is_called_once_however_many_threads_call(repetition: int) -> None:
    calls: list[int] = []
    together = threading.Barrier(8, timeout=20)

    def serve() -> None:
        together.wait()
        with torch.no_grad():
            model(ids())

    with tp.set_on_compilation_complete(lambda: calls.append(1)):
        model = stack()
        threads = [threading.Thread(target=serve) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert calls == [1]


def test_a_model_compiled_outside_is_watched_in_threads_that_run_in_the_blocks_context() -> None:
    calls: list[int] = []
    model = stack()
    with tp.set_on_compilation_complete(lambda: calls.append(1)):
        context = contextvars.copy_context()

        def serve() -> None:
            with torch.no_grad():
                context.run(model, ids())

        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
    assert calls == [1]


def test_each_of_two_models_in_one_block_is_told() -> None:
    one, other = stack(1), stack(2)
    calls = Calls(one, other)
    with tp.set_on_compilation_complete(calls):
        one(ids())
        other(ids())
    assert calls.ready == [2, 5]


def test_a_model_traced_again_is_told_again_and_one_that_was_ready_is_not() -> None:
    @tp.compile(backend="eager")
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    doubled(torch.randn(3))
    calls: list[int] = []
    with tp.set_on_compilation_complete(lambda: calls.append(1)):
        doubled(torch.randn(4))
        assert calls == []
        doubled(torch.randn(4, dtype=torch.float64))
    assert calls == [1]


def test_nothing_is_told_once_the_block_is_left() -> None:
    calls: list[int] = []
    with tp.set_on_compilation_complete(lambda: calls.append(1)):
        model = stack()
    model(ids())
    assert calls == []


def test_blocks_inside_each_other_are_all_told_the_innermost_first() -> None:
    calls: list[str] = []
    with (
        tp.set_on_compilation_complete(lambda: calls.append("outer")),
        tp.set_on_compilation_complete(lambda: calls.append("inner")),
    ):
        stack()(ids())
    assert calls == ["inner", "outer"]


def test_what_it_raises_is_logged_and_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise KeyError("mine")

    model, x, told = stack(), ids(), []
    with (
        tp.set_on_compilation_complete(lambda: told.append(1)),
        tp.set_on_compilation_complete(fail),
        tp.program_of(model).counters.expect(graphs_captured=1),
    ):
        assert torch.equal(model(x), model.forward(x))
        assert torch.equal(model(x), model.forward(x))
    assert told == [1]
    (warning,) = [one for one in caplog.records if "set_on_compilation_complete failed" in one.message]
    assert warning.levelname == "WARNING" and warning.exc_info is not None
    assert warning.exc_info[0] is KeyError


def test_it_may_call_the_model_and_wait_for_threads_that_do() -> None:
    model, x = stack(), ids()
    results: list[torch.Tensor] = []

    def use() -> None:
        with torch.no_grad():
            results.append(model(x))

    def warm() -> None:
        use()
        thread = threading.Thread(target=use)
        thread.start()
        thread.join(timeout=20)

    with tp.set_on_compilation_complete(warm):
        model(x)
    assert len(results) == 2


def test_a_model_that_runs_eagerly_is_never_told(tmp_path: Path) -> None:
    calls: list[int] = []
    with tp.set_on_compilation_complete(lambda: calls.append(1)):
        stack(mode="none")(ids())
        stack(on_miss="eager", cache_dir=str(tmp_path))(ids())
        with pytest.raises(MissError):
            stack(on_miss="error", cache_dir=str(tmp_path))(ids())
    assert calls == []


def test_it_is_called_for_each_graph_under_torch_compile() -> None:
    torch._dynamo.reset()
    calls: list[int] = []
    with tp.set_on_compilation_complete(lambda: calls.append(1)):
        torch.compile(Stack(1), backend="piecewise", options={"backend": "eager"})(ids())
    assert calls == [1]


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)cannot be called.*expected: a function of no arguments"):
        tp.set_on_compilation_complete("done").__enter__()  # type: ignore[arg-type]
