"""Static graphs around pieces that AOTInductor compiled: at once, from the store, and in place of others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.static_models import Rows, compiled, table

pytestmark = [pytest.mark.usefixtures("no_grad"), pytest.mark.slow, pytest.mark.inductor]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that the pieces are compiled into once."""
    return tmp_path_factory.mktemp("kept")


def model(kept: Path, **fields: Any) -> Any:
    torch.manual_seed(1)
    settings = {"backend": "aot_inductor", "disable_cache": False, "cache_dir": str(kept), **fields}
    return compiled(Rows(depth=1), **settings)


def same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected)


def test_pieces_are_captured_padded_replayed_and_captured_anew_for_a_replaced_weight(kept: Path) -> None:
    fields = {"cudagraph_mode": "full_and_piecewise", "cudagraph_num_of_warmups": 0}
    run, reference, handle = model(kept, **fields)
    run(torch.randn(3, 8))  # captures its own size
    with handle.counters.expect(sizes_captured=5, static_graphs=7):
        handle.warmup()
    with handle.counters.expect(calls_replayed=4, sizes_captured=0):
        for size in (1, 3, 8, 5):
            x = torch.randn(size, 8)
            same(run(x), reference(x))
    assert (5, 8, "PIECEWISE", 1, "") in table(handle)
    weight = torch.randn(8)
    for one in (run, reference):
        one.norm.weight = torch.nn.Parameter(weight.clone())
    with handle.counters.expect(sizes_captured=1, calls_replayed=3):
        for _ in range(3):
            x = torch.randn(4, 8)
            same(run(x), reference(x))


def test_a_captured_size_gives_the_compiled_results_bit_for_bit(kept: Path) -> None:
    run, _reference, handle = model(kept)
    plain, _reference, _handle = model(kept, cudagraph_mode="none")
    run(torch.randn(4, 8))
    handle.warmup([4])
    for _ in range(3):
        x = torch.randn(4, 8)
        assert torch.equal(run(x), plain(x))


def test_a_start_from_the_store_captures_without_a_trace_or_a_compile(kept: Path) -> None:
    model(kept)[0](torch.randn(3, 8))
    run, reference, handle = model(kept)
    with handle.counters.expect(graphs_captured=0, artifacts_compiled=0, artifacts_loaded=2):
        run(torch.randn(3, 8))
        handle.warmup()
    with handle.counters.expect(calls_replayed=1):
        x = torch.randn(7, 8)
        same(run(x), reference(x))


def test_graphs_of_the_first_pieces_give_way_to_those_of_the_better_ones(tmp_path: Path) -> None:
    run, reference, handle = model(
        tmp_path, backend="eager", upgrade_to="aot_inductor", cudagraph_num_of_warmups=0
    )
    for _ in range(3):
        x = torch.randn(4, 8)
        assert torch.equal(run(x), reference(x))
    deadline = time.monotonic() + 300
    while handle._serving.background.is_busy:
        assert time.monotonic() < deadline
        x = torch.randn(4, 8)
        same(run(x), reference(x))
        time.sleep(0.2)
    captured = handle.counters["sizes_captured"]
    for _ in range(2):
        x = torch.randn(4, 8)
        same(run(x), reference(x))
    assert captured + 1 >= handle.counters["sizes_captured"] >= 2
    compilers = {ready.artifact.compiler for ready in handle.entries[0].program.made().values()}
    assert compilers == {"aot_inductor"}
