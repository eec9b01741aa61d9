"""One bundle for the tests that only look at it, its pieces as Python so that nothing is compiled."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_piecewise as tp
from tests.bundles import served

Rewrite = Callable[..., Path]


@pytest.fixture(scope="session")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ``served.LM``."""
    path = tmp_path_factory.mktemp("bundles") / "lm.tpb"
    tp.bake(
        served.LM().eval(),
        served.example("LM", 5),
        path,
        backend="eager",
        disable_cache=True,
        **served.LM_SETTINGS,
    )
    return path


@pytest.fixture
def lm() -> torch.nn.Module:
    return served.LM().eval()


@pytest.fixture
def rewritten(baked: Path, tmp_path: Path) -> Rewrite:
    """Makes a copy of the bundle with its manifest or members changed, and everything else intact."""

    def rewrite(
        change: Callable[[dict[str, Any]], None] = lambda _manifest: None,
        members: Callable[[dict[str, bytes]], None] = lambda _members: None,
    ) -> Path:
        with zipfile.ZipFile(baked) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(contents["manifest.json"])
        change(manifest)
        contents["manifest.json"] = json.dumps(manifest).encode()
        members(contents)
        path = tmp_path / "changed.tpb"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return path

    return rewrite
