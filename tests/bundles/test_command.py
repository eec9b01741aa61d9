"""``torch-piecewise bake``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import torch_piecewise as tp
from tests.bundles import served
from tests.models.checks import assert_same
from torch_piecewise.baking.cli import bake
from torch_piecewise.errors import ConfigError, UntrustedError
from torch_piecewise.store.signing import new_key_file

MAKER = """
import torch
from tests.bundles import served

def make():
    return served.Plain(), served.example("Plain", 3), {"backend": "eager", **served.PLAIN_SETTINGS}

def wrong():
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "maker.py").write_text(MAKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_bundle_from_a_function(folder: Path, no_grad: None) -> None:
    new_key_file(folder / "key")
    done = CliRunner().invoke(bake, ["maker:make", "out.tpb", "--signing-key-file", "key"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("out.tpb: ")
    model, x = served.Plain(), torch.randn(5, 4)
    want = torch.nn.functional.gelu(model.layer(x)) * 2 + 1
    assert_same(tp.load(folder / "out.tpb", model, signing_key_file=folder / "key")(x)[0], want)
    new_key_file(folder / "other")
    with pytest.raises(UntrustedError):
        tp.load(folder / "out.tpb", model, signing_key_file=folder / "other")


def test_what_names_no_function_or_makes_no_model_is_refused(folder: Path) -> None:
    for target in ("nowhere:make", "maker:absent", "maker"):
        error = CliRunner().invoke(bake, [target, "out.tpb"]).exception
        assert isinstance(error, ConfigError)
        assert "does not name a function" in str(error)
    error = CliRunner().invoke(bake, ["maker:wrong", "out.tpb"]).exception
    assert isinstance(error, ConfigError)
    assert "expected: (model, example inputs) or (model, example inputs, settings)" in str(error)
    assert not (folder / "out.tpb").exists()
