"""Collectives as cuts: they run between static graphs, on every rank in each call."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import torch_piecewise as tp
from tests.collective_rank import Sharded, captured

pytestmark = [
    pytest.mark.usefixtures("no_grad"),
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo"),
]

ROOT = Path(__file__).parent.parent


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("error:.*reduce_op:FutureWarning")  # of a trace that looks at what it need not
def test_each_collective_is_a_cut_between_graphs() -> None:
    model = Sharded().eval()
    reference = copy.deepcopy(model)
    captured(model)
    handle = tp.program_of(model)
    model(torch.randn(3, 4))
    with handle.counters.expect(sizes_captured=2, static_graphs=6):
        handle.warmup()
    with handle.counters.expect(calls_replayed=3):
        for size in (1, 4, 3):
            x = torch.randn(size, 4)
            torch.testing.assert_close(model(x), reference(x))


@pytest.mark.slow
def test_two_ranks_replay_their_pieces_and_meet_in_the_collectives_between(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.collective_rank"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path / "meeting")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        out, errors = rank.communicate(timeout=180)
        assert rank.returncode == 0, errors
        assert out.split() == ["replayed", "3", "graphs", "6"]


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.usefixtures("alone")
def test_collectives_lie_between_inductors_partitions_too(tmp_path: Path) -> None:
    model = Sharded().eval()
    reference = copy.deepcopy(model)
    captured(
        model,
        backend="inductor",
        use_inductor_graph_partition=True,
        compile_threads=1,
        disable_cache=False,
        cache_dir=str(tmp_path / "store"),
    )
    handle = tp.program_of(model)
    model(torch.randn(3, 4))
    with handle.counters.expect(sizes_captured=2, static_graphs=6):
        handle.warmup()
    (program,) = [entry.program for entry in handle.entries]
    (ready,) = program.made().values()
    assert "all_reduce_.default" in program.generated_code(ready.artifact)
    for size in (1, 4, 3):
        x = torch.randn(size, 4)
        torch.testing.assert_close(model(x), reference(x))
    assert handle.counters["calls_replayed"] == 3
