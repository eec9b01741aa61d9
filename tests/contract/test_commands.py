"""The commands as people type them first: with as little as possible."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import torch_piecewise as tp
from torch_piecewise.cli import commands
from torch_piecewise.testing import RecordingCompiler

pytestmark = pytest.mark.usefixtures("no_grad")


class Older(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + 1) * 2


class Newer(Older):
    pass


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with two programs, the one that commands look at by themselves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_PIECEWISE_CACHE_DIR", str(tmp_path / "root"))
    for model in (Older(), Newer()):
        tp.compile(model, backend=RecordingCompiler(), splitting_ops=["aten::relu"])(torch.randn(3, 4))
    return tmp_path / "root"


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(commands, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def test_without_a_target_commands_are_about_the_newest_program(root: Path) -> None:
    run("report", "-o", "r.json")
    assert json.loads(Path("r.json").read_text())["title"] == "Newer"
    assert json.loads(run("cache", "show", "--json"))["meta"]["name"] == "Newer"
    assert "program Newer" in run("cache", "why")


def test_the_report_is_a_page_unless_said_otherwise(root: Path) -> None:
    assert run("report") == "Newer: report.html\n"
    assert Path("report.html").read_text().lstrip().lower().startswith("<!doctype html>")


@pytest.mark.parametrize("verb", [["report"], ["cache", "show"], ["cache", "why"]])
def test_where_no_program_is_kept_it_is_said(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_PIECEWISE_CACHE_DIR", str(tmp_path / "empty"))
    assert run(*verb, code=1) == (
        "Error: No program is kept here\n"
        "  expected: one that an earlier run compiled and kept\n"
        f"  got: none in {tmp_path / 'empty'}\n"
        "  to do: run the model once, or name another folder: --root, TORCH_PIECEWISE_CACHE_DIR\n"
    )


def test_a_moved_root_serves_as_it_is(root: Path) -> None:
    root.rename(root.with_name("moved"))
    model, x = Newer(), torch.randn(5, 4)
    settings: dict[str, Any] = {"backend": RecordingCompiler(), "splitting_ops": ["aten::relu"]}
    tp.compile(model, cache_dir=root.with_name("moved"), on_miss="error", **settings)
    assert torch.equal(model(x), torch.relu(x + 1) * 2)


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch_piecewise", "--help"], capture_output=True, text=True, check=True
    )
    assert all(verb in done.stdout for verb in ("bake", "cache", "demo", "doctor", "explain", "report"))
