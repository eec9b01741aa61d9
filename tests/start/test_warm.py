from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.start.conftest import HERE, Place

pytestmark = pytest.mark.inductor


EAGERLY = "on_miss='eager'"


def only(outcome: dict[str, Any]) -> dict[str, Any]:
    (result,) = outcome["results"]
    return dict(result)


def assert_warm(outcome: dict[str, Any]) -> None:
    result = only(outcome)
    assert result["difference"] < 1e-5
    assert result["counts"].get("graphs_captured", 0) == 0
    assert result["counts"].get("artifacts_compiled", 0) == 0


def assert_miss(outcome: dict[str, Any], *named: str) -> None:
    """The start traced anew, and said once which ingredient differs, naming ``named``."""
    result = only(outcome)
    assert result["difference"] < 1e-5
    assert result["counts"]["graphs_captured"] == 1
    assert_said(outcome, *named)


def assert_refused(outcome: dict[str, Any], *named: str) -> None:
    """The start took nothing from the store, ran eagerly, and said which ingredient differs."""
    result = only(outcome)
    assert result["difference"] == 0.0
    assert "artifacts_loaded_from_store" not in result["counts"]
    assert "graphs_captured" not in result["counts"]
    assert_said(outcome, *named)


def assert_said(outcome: dict[str, Any], *named: str) -> None:
    said = next(reason for reason in outcome["reasons"] if "differs" in reason or "not used" in reason)
    for name in named:
        assert name in said, said


def test_a_second_start_neither_traces_nor_compiles_nor_imports_what_does(copy: Place) -> None:
    outcome = copy.start()
    assert_warm(outcome)
    assert outcome["heavy"] == []
    assert only(outcome)["counts"]["artifacts_loaded_from_store"] == 6


def test_a_copied_root_starts_without_a_compiler_in_another_home(copy: Place, tmp_path: Path) -> None:
    bare = Place(copy.model, copy.root, tmp_path / "no inductor cache")
    assert_warm(bare.start(PATH=str(tmp_path / "empty"), HOME=str(tmp_path), CXX="", CC=""))


def test_a_changed_checkpoint_is_a_hit(copy: Place) -> None:
    assert_warm(copy.start("seed=7"))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("return x.relu()", "return x.relu() * 2", "Stack"),
        (
            "torch.softmax(x @ x.t(), -1) @ x",
            "torch.softmax(x @ x.t() * 2, -1) @ x",
            "splitting_ops.start::attend",
        ),
    ],
    ids=["model source", "op body"],
)
def test_edited_code_is_a_miss_that_names_it(copy: Place, old: str, new: str, named: str) -> None:
    copy.edit(old, new)
    assert_miss(copy.start(), named)


REWRITE = """
import torch

SEEN = torch.ops.aten.tanh.default

def looks(graph):
    return len(graph.find_nodes(op="call_function", target=SEEN))
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("return len(", "return 1 + len(", marks=pytest.mark.slow),
        ("aten.tanh.default", "aten.mm.default"),
    ],
    ids=["body", "what it names"],
)
def test_an_edited_pass_is_a_miss_that_names_the_pass(copy: Place, old: str, new: str) -> None:
    settings = ("inductor_passes={'looks': 'rewrites.looks'}", "compile_sizes=[]")
    (copy.model / "rewrites.py").write_text(REWRITE)
    assert_miss(copy.start(*settings), "passes.1:looks: (none) -> ")
    warm = copy.start(*settings)
    assert_warm(warm)
    assert warm["heavy"] == []
    copy.edit(old, new, "rewrites.py")
    assert_refused(copy.start(*settings, EAGERLY), "passes.1:looks: ")


@pytest.mark.parametrize(
    ("settings", "env", "named"),
    [
        (("scale=2.5",), {}, ("module.scale: 1.5 -> 2.5",)),
        (("dtype='float64'",), {}, ("float32", "float64")),
        (("compile_sizes=[1, 2]",), {}, ("config.compile_sizes",)),
        (("compile_ranges_endpoints=[9]",), {}, ("config.compile_ranges_endpoints",)),
        ((), {"OMP_NUM_THREADS": "1"}, ("threads: 2 -> 1",)),
        ((), {"ATEN_CPU_CAPABILITY": "default"}, ("capability",)),
    ],
    ids=["attribute", "dtype", "sizes", "endpoints", "threads", "cpu"],
)
def test_what_changes_code_is_a_miss_that_names_exactly_that(
    copy: Place, settings: tuple[str, ...], env: dict[str, str], named: tuple[str, ...]
) -> None:
    # That a start then traces and compiles is shown by edited code.
    outcome = copy.start(*settings, EAGERLY, **env)
    assert_refused(outcome, *named)
    said = next(reason for reason in outcome["reasons"] if "differs in" in reason)
    assert said.count(" -> ") <= 3


def test_a_miss_is_an_error_where_compiling_is_not_wanted(copy: Place) -> None:
    error = only(copy.start("on_miss='error'", "scale=3.5"))["error"]
    assert "on_miss='error' and the store has no program for this call" in error
    assert "module.scale: 1.5 -> 3.5" in error
    assert_warm(copy.start("on_miss='error'"))


def test_a_miss_runs_eagerly_where_that_is_wanted(copy: Place) -> None:
    result = only(copy.start("on_miss='eager'", "scale=3.5"))
    assert result["difference"] == 0.0
    assert "graphs_captured" not in result["counts"]


def test_without_a_cache_nothing_is_written(copy: Place, tmp_path: Path) -> None:
    place = Place(copy.model, tmp_path / "never made", copy.inductor)
    result = only(place.start("disable_cache=True", "backend='eager'"))
    assert result["difference"] == 0.0
    assert not place.root.exists()


def test_companions_for_people_stand_beside_the_program(copy: Place) -> None:
    names = {path.name for path in copy.root.rglob("*") if path.is_file()}
    assert {"computation_graph.py", "transformed_code.py", "runner.py", "ingredients.json"} <= names


def test_no_file_of_a_root_tells_where_it_lies(filled: Place) -> None:
    for path in filled.root.rglob("*"):
        if path.is_file() and path.suffix in {".json", ".py"}:
            assert str(filled.root) not in path.read_text(errors="replace"), path


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two dozen starts, most of which compile again
def test_any_damaged_file_is_noticed_and_mended(copy: Place) -> None:
    generator = random.Random(0)
    files = sorted(path for path in copy.root.rglob("*") if path.is_file() and path.stat().st_size > 0)
    for round_number in range(6):
        for path in generator.sample(files, 4):
            if not path.exists():
                continue
            data = bytearray(path.read_bytes())
            if not data:
                continue
            if round_number % 2:
                data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            else:
                del data[generator.randrange(len(data)) :]
            path.write_bytes(data)
        assert only(copy.start())["difference"] < 1e-5
        assert_warm(copy.start())


@pytest.mark.slow
def test_eight_processes_of_four_threads_compile_each_piece_once(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    shutil.copy(HERE / "stack.py", tmp_path / "model")
    place = Place(tmp_path / "model", tmp_path / "root", tmp_path / "inductor")
    running = [
        subprocess.Popen(
            place.command("threads=4", "compile_threads=1"),
            env=place.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    outcomes = []
    for process in running:
        out, err = process.communicate(timeout=280)
        assert process.returncode == 0, err[-3000:]
        outcomes += json.loads(out.splitlines()[-1])["results"]
    assert len(outcomes) == 32
    assert all(outcome["difference"] < 1e-5 for outcome in outcomes)
    assert sum(outcome["counts"].get("artifacts_compiled", 0) for outcome in outcomes) == 6
    assert sum(outcome["counts"].get("graphs_captured", 0) for outcome in outcomes) == 1


@pytest.mark.slow
def test_an_owner_killed_in_the_middle_leaves_the_others_able_to_finish(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    shutil.copy(HERE / "stack.py", tmp_path / "model")
    place = Place(tmp_path / "model", tmp_path / "root", tmp_path / "inductor")
    owner = subprocess.Popen(
        place.command(), env=place.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not any(tmp_path.rglob("*.py.lock")) and not (tmp_path / "inductor").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    waiting = subprocess.Popen(
        place.command(), env=place.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(2.0)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    out, err = waiting.communicate(timeout=200)
    assert waiting.returncode == 0, err[-3000:]
    assert only(json.loads(out.splitlines()[-1]))["difference"] < 1e-5
    assert_warm(place.start())
