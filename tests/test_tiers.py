"""Two tiers under stress: swaps while threads call, faults in the background, forks, the end of a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from torch_piecewise.artifact import Artifact, LiveArtifact
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.compilers.eager import live_runnable
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range


@tp.splitting_op("tiers_test::double", fake=torch.empty_like)
def double(x: Tensor) -> Tensor:
    """Twice ``x``."""
    return x * 2


class Tower(torch.nn.Module):
    """Five pieces that differ, four cuts."""

    def forward(self, x: Tensor) -> Tensor:
        x = double(x.sin())
        x = double(x.cos() + 1)
        x = double(x.tanh() - x)
        x = double(x.sigmoid() * 3)
        return x.abs()


class Slowly:
    """Takes a moment for each piece."""

    name = "slowly"

    def fingerprint(self) -> str:
        return self.name

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        time.sleep(0.02)
        return LiveArtifact(self.name, piece.name, range, runnable=piece.graph.forward)

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        return live_runnable(artifact, self.name)


class Later(Slowly):
    name = "later"


class Broken(Slowly):
    """Fails in every way but one."""

    name = "broken"

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        time.sleep(0.01)
        if range.start > 4:
            raise MemoryError("no room")
        if piece.graph.graph.find_nodes(op="call_method", target="tanh"):
            return LiveArtifact(self.name, piece.name, range, runnable=None)  # not callable
        raise RuntimeError("compilers fail")


SETTINGS: dict[str, Any] = {
    "backend": "tests.test_tiers.Slowly",
    "upgrade_to": "tests.test_tiers.Later",
    "on_miss": "background",
    "splitting_ops": ["tiers_test::double"],
    "dynamic_arg_dims": {"x": 0},
    "compile_ranges_endpoints": [4],
    "compile_sizes": [1],
}


@pytest.fixture(autouse=True)
def _inference(no_grad: None) -> Iterator[None]:
    return


def later_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.endswith("(later)")]


def hammer(model: Any, plain: Any, seconds: float, count: int = 4) -> list[str]:
    """What went wrong while ``count`` threads called with sizes of every range."""
    wrong: list[str] = []
    end = time.monotonic() + seconds

    def call(seed: int) -> None:
        picked = torch.Generator().manual_seed(seed)
        while time.monotonic() < end:
            x = torch.randn(int(torch.randint(1, 12, (), generator=picked)), 3)
            with torch.no_grad():
                try:
                    if not torch.equal(model(x), plain(x)):
                        wrong.append(f"another result at {x.shape[0]}")
                except Exception as error:  # noqa: BLE001 - collected from a thread
                    wrong.append(repr(error))
            time.sleep(0.001)  # the background wants its turn

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_threads_get_right_results_while_every_range_of_both_tiers_is_swapped_in() -> None:
    model, plain = tp.compile(Tower(), **SETTINGS), Tower()
    assert hammer(model, plain, 1.0) == []
    background = tp.program_of(model)._serving.background
    assert background.wait(60)
    assert hammer(model, plain, 0.2) == []
    assert background.wait(60)
    (entry,) = tp.program_of(model).entries
    kinds = {one.artifact.compiler for one in entry.program.made().values() if one.artifact is not None}
    assert "later" in kinds
    deadline = time.monotonic() + 10
    while later_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert later_threads() == []


def test_a_background_that_fails_at_everything_leaves_the_calls_right(caplog: Any) -> None:
    model, plain = (
        tp.compile(Tower(), **{**SETTINGS, "backend": "tests.test_tiers.Broken", "upgrade_to": None}),
        Tower(),
    )
    assert hammer(model, plain, 1.0) == []
    assert tp.program_of(model)._serving.background.wait(60)
    assert hammer(model, plain, 0.2) == []
    assert "stays as it is" in caplog.text


def test_restoring_while_the_background_works_serves_the_model_itself() -> None:
    model, plain = tp.compile(Tower(), **SETTINGS), Tower()
    x = torch.randn(3, 3)
    model(x)
    tp.program_of(model).restore()
    assert hammer(model, plain, 0.3) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_while_the_background_works_serves_right_results() -> None:
    model, plain = tp.compile(Tower(), **SETTINGS), Tower()
    model(torch.randn(3, 3))
    for attempt in range(12):
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # a child that hangs ends by itself, with another status
            same = True
            for size in (1, 3, 6, 9, 12 + attempt):
                x = torch.ones(size, 3) * attempt
                same = same and torch.equal(model(x), plain(x))
            os._exit(0 if same else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, f"child {attempt}"
        time.sleep(0.05)


ENDS = """
import os, sys, time, torch
import torch_piecewise as tp
from torch_piecewise.compilers.eager import EagerCompiler

folder = sys.argv[1]
sys.path.insert(0, folder)
import sleeps

model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval()
tp.compile(
    model, backend=sleeps.Sleeps(), on_miss="background", dynamic_arg_dims={"input": 0}, splitting_ops=[],
    cache_dir=os.path.join(folder, "cache"),
)
with torch.no_grad():
    model(torch.randn(3, 4))
while not os.path.exists(os.path.join(folder, "pid")):
    time.sleep(0.05)
print("end", time.time(), flush=True)
"""
SLEEPS = """
import os, time
from torch_piecewise.compilers.eager import EagerCompiler

class Sleeps(EagerCompiler):
    name = "sleeps"
    can_compile_in_worker = True

    def compile(self, piece, range, options):
        folder = os.path.dirname(os.path.abspath(__file__))
        with open(os.path.join(folder, "writing"), "w") as file:
            file.write(str(os.getpid()))
        os.rename(os.path.join(folder, "writing"), os.path.join(folder, "pid"))
        time.sleep(90)
        return super().compile(piece, range, options)
"""


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc")
def test_a_process_ends_at_once_and_takes_its_compiling_workers_with_it(tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    done = subprocess.run(
        [sys.executable, "-c", ENDS, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    ended = time.time()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert ended - float(done.stdout.split()[1]) < 15
    worker = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)
