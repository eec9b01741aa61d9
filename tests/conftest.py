"""What every test gets: a fixed seed, a store of its own run, one compile cache for Inductor tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all tests of one run share, those of pytest-xdist's other processes included."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "run"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _own_caches(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from or written to the user's caches."""
    monkeypatch.setenv("TORCH_PIECEWISE_CACHE_DIR", str(run_folder / "store"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(run_folder / "inductor"))


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Run the test without gradients, as people serve models."""
    with torch.no_grad():
        yield
