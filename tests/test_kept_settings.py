"""Settings about keeping and compiling: each test fails where one is ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import torch_piecewise as tp
from tests.graphs import Stack
from torch_piecewise.managers import store_for

pytestmark = pytest.mark.usefixtures("no_grad")


def start(root: Path, **fields: Any) -> Any:
    """The counts of a start on ``root``."""
    settings = {
        "backend": "tests.kept_compiler.KeptEager",
        "cache_dir": str(root),
        "splitting_ops": ["tests::attention"],
    }
    model = tp.compile(Stack(1), **{**settings, **fields})
    model(torch.randint(0, 50, (3,)))
    return tp.program_of(model).counters


def test_a_declared_variable_with_another_value_is_a_miss_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KERNELS", "fast")
    traces = []
    for value in ("fast", "fast", "exact"):
        monkeypatch.setenv("MY_KERNELS", value)
        traces.append(start(tmp_path, key_environment=["MY_KERNELS"])["graphs_captured"])
    assert traces == [1, 0, 1]
    assert "MY_KERNELS: fast -> exact" in caplog.text.replace("'", "")
    # A variable that nobody declared says nothing.
    assert [start(tmp_path)["graphs_captured"] for _ in range(2)] == [1, 0]
    monkeypatch.setenv("MY_KERNELS", "other")
    assert start(tmp_path)["graphs_captured"] == 0


def test_what_is_over_the_size_limit_is_given_up(tmp_path: Path) -> None:
    roots = {limit: tmp_path / str(limit) for limit in (None, 1)}
    kept = {}
    for limit, root in roots.items():
        start(root, cache_size_limit=limit)
        config = tp.Config(cache_dir=str(root), cache_size_limit=limit)
        store = store_for(config)
        assert store is not None
        kept[limit] = store.limit_bytes
    assert kept[1] == 1 < kept[None]


@pytest.mark.parametrize(("threads", "workers"), [(1, 0), (3, 2)])
def test_compile_threads_are_this_process_and_workers(threads: int, workers: int) -> None:
    manager = tp.CompilerManager(tp.Config(backend="eager", compile_threads=threads))
    assert manager._pool._limit == workers


def test_without_a_cache_every_start_traces(tmp_path: Path) -> None:
    assert [start(tmp_path)["graphs_captured"] for _ in range(2)] == [1, 0]
    assert start(tmp_path, disable_cache=True)["graphs_captured"] == 1
