from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from torch_piecewise.passes.cleanup import CleanUp

from .graphs import lines, text_of, traced


@pytest.fixture(scope="module")
def example() -> ModuleType:
    file = Path(__file__).parents[2] / "examples" / "fused_rmsnorm_pass.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def test_six_operators_become_one(example):
    module = traced(lambda x, weight: norm(x.sin(), weight).cos(), torch.randn(5, 8), torch.randn(8))
    assert text_of(module) == lines("""
        x_1 = placeholder
        weight_1 = placeholder
        sin = aten.sin.default(x_1)
        pow_1 = aten.pow.Tensor_Scalar(sin, 2)
        mean = aten.mean.dim(pow_1, [-1], True)
        add = aten.add.Tensor(mean, 1e-06)
        rsqrt = aten.rsqrt.default(add)
        mul = aten.mul.Tensor(sin, rsqrt)
        mul_1 = aten.mul.Tensor(mul, weight_1)
        cos = aten.cos.default(mul_1)
        return cos
    """)
    assert example.FuseRMSNorm()(module.graph) == 1
    CleanUp()(module.graph)
    assert text_of(module) == lines("""
        x_1 = placeholder
        weight_1 = placeholder
        sin = aten.sin.default(x_1)
        fused_rms_norm_default = examples.fused_rms_norm.default(sin, weight_1, 1e-06)
        cos = aten.cos.default(fused_rms_norm_default)
        return cos
    """)


def other_order(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * (torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * x)


def two_in_a_row(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return norm(norm(x, weight), weight)


@pytest.mark.parametrize(("forward", "matches"), [(norm, 1), (other_order, 1), (two_in_a_row, 2)])
def test_the_fused_graph_computes_the_same(example, forward, matches):
    x, weight = torch.randn(5, 8), torch.randn(8)
    module = traced(forward, x, weight)
    assert example.FuseRMSNorm()(module.graph) == matches
    module.recompile()
    fresh = torch.randn(5, 8)
    torch.testing.assert_close(module(fresh, weight), forward(fresh, weight))


@pytest.mark.parametrize(
    "forward",
    [
        lambda x, w: x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + 1e-6) * w,
        lambda x, w: x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + 1e-6) * w,
        lambda x, w: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6) * w,
        lambda x, w: x.exp() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w,
        lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w.double(),
        lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w.expand(8, 8),
        lambda x, w: (r := torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), x * r * w),
    ],
    ids=[
        "cube",
        "other dim",
        "sum",
        "other x",
        "other type",
        "weight of two dims",
        "scale is read elsewhere",
    ],
)
def test_what_is_no_rms_norm_is_left_alone(example, forward):
    module = traced(forward, torch.randn(8, 8), torch.randn(8))
    before = text_of(module)
    assert example.FuseRMSNorm()(module.graph) == 0
    assert text_of(module) == before


def test_the_option_leaves_small_norms_alone(example):
    module = traced(norm, torch.randn(5, 8), torch.randn(8))
    assert example.FuseRMSNorm(smallest=100)(module.graph) == 0


@pytest.mark.inductor
def test_the_example_runs_and_shows_what_the_pass_did(example, capsys):
    example.main()
    before, after, said = capsys.readouterr().out.split("\n\n")
    assert before.count("aten.rsqrt.default") == 2
    assert lines(after[after.index("permute = ") :]) == lines("""
        permute = aten.permute.default(arg1_1, [1, 0])
        addmm = aten.addmm.default(arg2_1, arg0_1, permute)
        fused_rms_norm_default = examples.fused_rms_norm.default(addmm, arg3_1, 1e-06)
        permute_1 = aten.permute.default(arg4_1, [1, 0])
        addmm_1 = aten.addmm.default(arg5_1, fused_rms_norm_default, permute_1)
        fused_rms_norm_default_1 = examples.fused_rms_norm.default(addmm_1, arg6_1, 1e-06)
        return (fused_rms_norm_default_1,)
    """)
    assert "fuse_rmsnorm: 2 matches" in said
    assert float(said.split("eager: ")[1]) < 1e-5
