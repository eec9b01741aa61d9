"""Starts in processes of their own, on copies of one root that a cold start filled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"


@dataclass
class Place:
    """A checkout of the model and a root.

    Attributes:
        model: folder that holds ``stack.py``.
        root: where programs are kept.
        inductor: Inductor's own cache.
    """

    model: Path
    root: Path
    inductor: Path

    def command(self, *settings: str) -> list[str]:
        return [sys.executable, "-P", str(HERE / "program.py"), str(self.root), *settings]

    def environment(self, **env: str) -> dict[str, str]:
        own = {
            "PYTHONPATH": f"{self.model}{os.pathsep}{SOURCE}",
            "TORCHINDUCTOR_CACHE_DIR": str(self.inductor),
            "OMP_NUM_THREADS": "2",
        }
        return {**os.environ, **own, **env}

    def start(self, *settings: str, **env: str) -> dict[str, Any]:
        """Run a start; what it printed."""
        done = subprocess.run(
            self.command(*settings), env=self.environment(**env), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def edit(self, old: str, new: str, name: str = "stack.py") -> None:
        """Change the model's source, or another file beside it."""
        file = self.model / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A root after one cold start. Not to be changed: take a copy."""
    top = tmp_path_factory.mktemp("start")
    (top / "model").mkdir()
    shutil.copy(HERE / "stack.py", top / "model")
    place = Place(top / "model", top / "root", top / "inductor")
    (result,) = place.start()["results"]
    assert result["difference"] < 1e-5
    assert result["counts"]["graphs_captured"] == 1
    return place


@pytest.fixture
def copy(filled: Place, tmp_path: Path) -> Place:
    """A copy of the filled root and of the model, elsewhere."""
    shutil.copytree(filled.root, tmp_path / "elsewhere" / "root")
    shutil.copytree(filled.model, tmp_path / "model")
    return Place(tmp_path / "model", tmp_path / "elsewhere" / "root", filled.inductor)
