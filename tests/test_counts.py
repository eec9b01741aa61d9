"""How many pieces, compiles, loads and traces: pinned for whole models and for warm starts."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_piecewise as tp
from tests.graphs import Stack
from torch_piecewise.errors import CompileError

pytestmark = pytest.mark.usefixtures("no_grad")

SETTINGS: dict[str, Any] = {"backend": "eager", "splitting_ops": ["tests::attention"]}
RANGES: dict[str, Any] = {"compile_ranges_endpoints": [4, 16], "compile_sizes": [1, 8]}


def ids(count: int = 5) -> Tensor:
    return torch.randint(0, 50, (count,))


def counters(model: Any) -> Any:
    return tp.program_of(model).counters


class Eyes(nn.Module):
    """Two parts in front of a :class:`Stack`."""

    def __init__(self) -> None:
        super().__init__()
        self.left = Stack(3)
        self.right = Stack(2)
        self.body = Stack(4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        seen = self.left(left).sum() + self.right(right).sum()
        return self.body((seen.abs() * 10).long().remainder(50)[None])


def test_a_toy_of_twelve_layers() -> None:
    model = tp.compile(Stack(12), **SETTINGS, **RANGES)
    with counters(model).expect(
        graphs_captured=1,
        pieces=13,
        cuts=12,
        distinct_pieces=3,
        compiles_started=3 * 5,
        artifacts_compiled=3 * 5,
        artifacts_loaded=3 * 5,
        pieces_failed=0,
        recompiles=0,
    ):
        for size in (5, 1, 8, 3, 16, 100):
            model(ids(size))
    stats = tp.program_of(model).stats
    assert (stats.pieces, stats.cuts, stats.distinct_pieces, stats.artifacts_compiled) == (13, 12, 3, 15)


def test_a_model_of_two_tags() -> None:
    model = Eyes()
    reference = copy.deepcopy(model)
    with tp.set_model_tag("left", is_encoder=True):
        tp.compile(model.left, **SETTINGS, compile_sizes=[2])
    with tp.set_model_tag("right", is_encoder=True):
        tp.compile(model.right, **SETTINGS)
    tp.compile(model.body, **SETTINGS)
    once = {"graphs_captured": 1, "distinct_pieces": 3, "recompiles": 0}
    with (
        counters(model.left).expect(pieces=4, cuts=3, artifacts_compiled=6, **once),
        counters(model.right).expect(pieces=3, cuts=2, artifacts_compiled=3, **once),
        counters(model.body).expect(pieces=5, cuts=4, artifacts_compiled=3, **once),
    ):
        for size in (3, 2, 7):
            left, right = ids(size), ids(size + 1)
            assert torch.equal(model(left, right), reference(left, right))


def test_a_nested_model() -> None:
    model = Eyes()
    reference = copy.deepcopy(model)
    for part in (model.left, model.right, model.body):
        tp.compile(part, **SETTINGS)
    tp.compile(model, **SETTINGS, dynamic_arg_dims={"left": 0, "right": 0})
    # Alike are the blocks inside one part: those of two parts have other sizes, or not the dispatch dim.
    with (
        counters(model.left).expect(graphs_captured=0),
        counters(model.right).expect(graphs_captured=0),
        counters(model.body).expect(graphs_captured=0),
        counters(model).expect(
            graphs_captured=1, pieces=10, cuts=9, distinct_pieces=7, artifacts_compiled=7, recompiles=0
        ),
    ):
        for left, right in ((3, 5), (2, 2), (1, 4)):
            inputs = ids(left), ids(right)
            assert torch.equal(model(*inputs), reference(*inputs))


def kept(root: Path) -> dict[str, Any]:
    return {
        "backend": "tests.kept_compiler.KeptEager",
        "cache_dir": str(root),
        "splitting_ops": ["tests::attention"],
    }


def test_a_warm_start_of_33_pieces_loads_the_distinct_ones_and_saves_nothing(tmp_path: Path) -> None:
    model = Stack(32)
    cold = tp.compile(copy.deepcopy(model), **kept(tmp_path))
    with counters(cold).expect(graphs_captured=1, pieces=33, distinct_pieces=3, artifacts_compiled=3):
        cold(x := ids())
    before = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    warm = tp.compile(copy.deepcopy(model), **kept(tmp_path))
    with counters(warm).expect(
        graphs_captured=0,
        compiles_started=0,
        artifacts_compiled=0,
        artifacts_loaded=3,
        artifacts_loaded_from_store=3,
        store_misses=0,
        store_hits=4,
    ):
        assert torch.equal(warm(x), model(x))
        warm(ids(1))
    assert tp.program_of(warm).stats.pieces == 33
    assert {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.inductor
def test_a_warm_start_of_33_pieces_runs_neither_dynamo_nor_aotautograd(tmp_path: Path) -> None:
    cold, warm = (start_of_33_pieces(tmp_path) for _ in range(2))
    assert cold["difference"] < 1e-5
    assert warm["difference"] < 1e-5
    assert (cold["counts"]["artifacts_compiled"], cold["counts"]["graphs_captured"]) == (3, 1)
    assert cold["timed"]  # what is asked about below is told by torch in a start that compiles
    assert warm["counts"] == {"artifacts_loaded": 3, "artifacts_loaded_from_store": 3, "store_hits": 4}
    assert (warm["imported"], warm["aot"], warm["frames"], warm["timed"]) == (False, {}, {}, [])


def start_of_33_pieces(folder: Path) -> dict[str, Any]:
    here = Path(__file__).parent
    environment = {
        "PYTHONPATH": f"{here.parents[0] / 'src'}{os.pathsep}{here.parent}",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
    done = subprocess.run(
        [sys.executable, "-P", str(here / "start" / "stack33.py"), str(folder / "root")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_backend_object_called_for_a_second_graph_says_what_to_do() -> None:
    torch._dynamo.reset()
    backend = tp.PiecewiseCompileBackend(backend="eager", disable_cache=True)
    torch.compile(nn.Linear(3, 3), backend=backend)(torch.randn(2, 3))
    with pytest.raises(CompileError) as caught:
        backend(torch.fx.symbolic_trace(nn.ReLU()), [torch.randn(3)])
    assert str(caught.value) == (
        "This backend object has compiled a graph already\n"
        "  expected: one PiecewiseCompileBackend per graph\n"
        "  got: a second graph\n"
        "  to do: make another one, or use torch.compile(backend='piecewise'), which does so"
    )
