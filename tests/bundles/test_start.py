"""Bundles in processes of their own: nothing that compiles or unpickles is loaded, outputs are eager's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_piecewise as tp
from tests.bundles import served

SCRIPT = """
import copy, json, sys
import pickle, torch

def forbidden(*args, **kwargs):
    raise AssertionError("something was unpickled")

pickle.load = pickle.loads = pickle.Unpickler = forbidden
name, bundle, sizes, library = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
sys.path[:0] = library
import served
import torch_piecewise as tp

model = getattr(served, name)().eval()
plain = copy.deepcopy(model)
started = tp.load(bundle, model)
worst = 0.0
with torch.no_grad():
    for size in sizes:
        inputs = served.example(name, size)
        got, want = started(*inputs), plain(*inputs)
        pairs = zip(got, want) if isinstance(want, tuple) else [(got, want)]
        if isinstance(want, dict):
            assert list(got) == list(want)
            pairs = zip(got.values(), want.values())
        for one, other in pairs:
            assert type(one) is type(other)
            if isinstance(one, int):
                assert one == other
                continue
            assert one.shape == other.shape and one.dtype == other.dtype
            worst = max(worst, (one - other).abs().max().item())
names = ("torch._dynamo", "torch._inductor", "torch_piecewise.graph_bytes", "torch_piecewise.compiled")
print(json.dumps({"worst": worst, "loaded": [one for one in names if one in sys.modules]}))
"""


def start(name: str, folder: Path, bundle: Path, sizes: list[int]) -> dict[str, Any]:
    """Start ``bundle`` where only ``folder`` has the model, with no compiler and nothing else on the PATH."""
    shutil.copy(served.__file__, folder / "served.py")
    (folder / "tmp").mkdir()
    library = [str(folder), str(Path(tp.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(bundle), json.dumps(sizes), json.dumps(library)],
        env={"PATH": "", "TMPDIR": str(folder / "tmp")},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list((folder / "tmp").iterdir()) == []
    return dict(json.loads(done.stdout.splitlines()[-1]))


def bake(name: str, path: Path, settings: dict[str, Any]) -> Path:
    """Bake one of the models; the module is known by the name it has where it will be served."""
    model = getattr(served, name)().eval()
    tp.bake(model, served.example(name, 5), path, disable_cache=True, **settings)
    return path


def test_a_bundle_of_python_starts_too(baked: Path, tmp_path: Path) -> None:
    told = start("LM", tmp_path, baked, [5, 1, 8, 9, 33])
    assert told == {"worst": 0.0, "loaded": []}


@pytest.mark.inductor
def test_a_model_without_cuts(tmp_path: Path) -> None:
    bundle = bake("Plain", tmp_path / "plain.tpb", served.PLAIN_SETTINGS)
    told = start("Plain", tmp_path, bundle, [5, 1, 2, 17])
    assert told["loaded"] == []
    assert told["worst"] < 1e-5


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.timeout(1200)  # nine compiles
def test_a_decoder_cut_at_its_own_attention(tmp_path: Path) -> None:
    bundle = bake("LM", tmp_path / "lm.tpb", served.LM_SETTINGS)
    told = start("LM", tmp_path, bundle, [5, 1, 8, 9, 33])
    assert told["loaded"] == []
    assert told["worst"] < 1e-4


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.timeout(1200)
def test_a_block_cut_at_torchs_attention(tmp_path: Path) -> None:
    bundle = bake("Gated", tmp_path / "gated.tpb", served.GATED_SETTINGS)
    told = start("Gated", tmp_path, bundle, [5, 1, 2, 9])
    assert told["loaded"] == []
    assert told["worst"] < 1e-4


def test_the_same_model_baked_twice_gives_the_same_bytes(baked: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    bake("LM", tmp_path / "again.tpb", {**served.LM_SETTINGS, "backend": "eager"})
    assert (tmp_path / "again.tpb").read_bytes() == baked.read_bytes()
