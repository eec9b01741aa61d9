"""Weights from a safetensors file, without the model's own code."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torch_piecewise as tp
from tests.bundles import served
from tests.models.checks import assert_same
from torch_piecewise.errors import BundleError
from torch_piecewise.runtime.weights import read_safetensors


def saved(model: nn.Module, path: Path) -> Path:
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # tied weights are saved once
            tensors[name] = tensor.detach()
            seen.add(id(tensor))
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def test_a_bundle_starts_on_a_file_of_weights(
    baked: Path, lm: nn.Module, tmp_path: Path, no_grad: None
) -> None:
    started = tp.load(baked, saved(lm, tmp_path / "w.safetensors"))
    assert not isinstance(started, served.LM)
    for size in (4, 1, 12):
        (ids,) = served.example("LM", size)
        assert_same(started(ids), lm(ids), f"at {size}")


def test_a_weight_that_the_file_lacks_is_named(baked: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"does not fit the bundle: layers\.2\.norm\.weight differs"):
        tp.load(baked, saved(served.LM(depth=2), tmp_path / "w.safetensors"))


def test_every_dtype_and_shape_is_read_as_it_was_saved(tmp_path: Path) -> None:
    tensors = {
        str(dtype): torch.randint(0, 2, (3, 5)).to(dtype)
        for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    }
    tensors |= {
        str(dtype): torch.randn(4, 2, 3).to(dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn)
    }
    tensors |= {"scalar": torch.randn(()), "none": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "w.safetensors")
    read = read_safetensors(tmp_path / "w.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype is tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].float(), tensor.float()), name


def test_changing_a_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    save_file({"x": torch.ones(4)}, tmp_path / "w.safetensors")
    before = (tmp_path / "w.safetensors").read_bytes()
    read_safetensors(tmp_path / "w.safetensors")["x"].zero_()
    assert (tmp_path / "w.safetensors").read_bytes() == before


def _file(path: Path, header: object, data: bytes) -> Path:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        (
            {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
            b"short",
            "'x' reaches beyond its end",
        ),
        ({"x": {"dtype": "F32", "shape": [4], "data_offsets": [-8, 8]}}, b"a" * 16, "reaches beyond its end"),
        ({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}, b"a" * 16, "in 16 bytes"),
        ({"x": {"dtype": "F9", "shape": [4], "data_offsets": [0, 16]}}, b"a" * 16, "the unknown dtype F9"),
        ({"x": {"dtype": "F32", "shape": [-4, -1], "data_offsets": [0, 16]}}, b"a" * 16, "beyond its end"),
        ({"x": 3}, b"", "a header that cannot be read"),
        (b"{nonsense", b"", "a header that cannot be read"),
    ],
)
def test_a_broken_file_is_refused_with_the_reason(
    tmp_path: Path, header: object, data: bytes, reason: str
) -> None:
    path = _file(tmp_path / "w.safetensors", header, data)
    with pytest.raises(BundleError) as refused:
        read_safetensors(path)
    assert "is no whole safetensors file" in str(refused.value)
    assert reason in str(refused.value)
    assert str(refused.value).endswith(
        "save_file(model.state_dict(), path) writes one; tp.load takes a model too"
    )


def test_a_file_that_ends_in_its_header_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"abc", struct.pack("<Q", 1000) + b"{}"):
        (tmp_path / "w").write_bytes(content)
        with pytest.raises(BundleError, match="is no whole safetensors file"):
            read_safetensors(tmp_path / "w")
