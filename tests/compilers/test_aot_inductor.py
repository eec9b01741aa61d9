"""Pieces as shared objects: within rounding of the uncompiled model, kept, and started without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torch_piecewise as tp
from tests.compilers.test_aot_call import piece_of
from tests.graphs import Stack
from tests.models.checks import assert_same, works_unchanged
from torch_piecewise.artifact import Artifact
from torch_piecewise.compilers import make_compiler
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.errors import CompilerError, PieceCompileError
from torch_piecewise.ranges import Range

TOLERANCE = 1e-5
FIELDS: dict[str, Any] = {"backend": "aot_inductor", "disable_cache": True, "tolerance": TOLERANCE}


class Odd(nn.Module):
    """What machine code cannot give by itself, in one piece: views of inputs, changed inputs, sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, cache: Tensor, rows: Tensor) -> dict[str, Any]:
        self.calls += 1
        y = self.layer(x)
        cache.index_copy_(0, rows, y)
        low = y.to(torch.bfloat16) * 2
        return {"sum": cache.sum(0) / self.calls, "low": low, "turned": x.t(), "rows": x.shape[0] * 2}


@pytest.mark.inductor
def test_views_changed_inputs_low_precision_and_sizes(no_grad: None) -> None:
    works_unchanged(
        Odd(),
        lambda n: (torch.randn(n, 4), torch.zeros(12, 4), torch.randperm(12)[:n]),
        [3, 1, 7],
        **FIELDS,
        splitting_ops=[],
        dynamic_arg_dims={"x": {0: "n"}, "rows": {0: "n"}},
    )


@pytest.mark.slow
@pytest.mark.inductor
def test_a_cut_model_in_ranges_and_at_an_exact_size(no_grad: None) -> None:
    compiled = works_unchanged(
        Stack(3).eval(),
        lambda n: (torch.randint(0, 50, (n,)),),
        [5, 1, 2, 8, 9, 40],
        **FIELDS,
        splitting_ops=["tests::attention"],
        compile_ranges_endpoints=[8],
        compile_sizes=[1],
    )
    assert tp.program_of(compiled).stats.distinct_pieces == 3


@pytest.mark.slow
@pytest.mark.inductor
def test_two_symbols_around_attention(no_grad: None) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(16, 48)
            self.out = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            parts = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.mix(x).chunk(3, -1))
            mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
            return self.out(functional.silu(x + mixed.transpose(1, 2).flatten(2)))

    works_unchanged(
        Gated().eval(),
        lambda size: (torch.randn(*size, 16),),
        [(2, 5), (1, 5), (2, 1), (1, 1), (4, 4)],
        **FIELDS,
        dynamic_arg_dims={"x": [0, 1]},
    )


@pytest.mark.slow
@pytest.mark.inductor
def test_half_precision(no_grad: None) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)).to(dtype)
        works_unchanged(
            model,
            lambda n, dtype=dtype: (torch.randn(n, 8, dtype=dtype),),
            [5, 1, 9],
            **{**FIELDS, "tolerance": 2e-2},
            dynamic_arg_dims={"input": 0},
        )


@pytest.mark.slow
@pytest.mark.inductor
def test_two_results_in_one_memory_stay_so(no_grad: None) -> None:
    @tp.compile(backend="aot_inductor", disable_cache=True, splitting_ops=[], dynamic_arg_dims={"x": 0})
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(x) * 2
        return y, y[:, 1:]

    both(torch.randn(5, 4))
    whole, part = both(torch.randn(9, 4))
    whole.fill_(7)
    assert (part == 7).all()


@pytest.mark.slow
@pytest.mark.inductor
def test_calls_that_record_gradients_are_compiled_in_memory() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    x = torch.randn(5, 8)
    model(x).pow(2).sum().backward()
    want = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    tp.compile(model, backend="aot_inductor", disable_cache=True, dynamic_arg_dims={"input": 0})
    model(x).pow(2).sum().backward()
    assert_same([parameter.grad for parameter in model.parameters()], want, tolerance=TOLERANCE)


@pytest.mark.slow
@pytest.mark.inductor
def test_a_kept_program_starts_without_dynamo_inductor_or_a_compiler(tmp_path: Path) -> None:
    program = """
import sys, torch
sys.path[:0] = {path!r}
import torch_piecewise as tp
from tests.graphs import Stack
torch.manual_seed(0)
model, ids = Stack(2).eval(), torch.arange(5)
with torch.no_grad():
    want = model(ids)
    tp.compile(model, backend="aot_inductor", cache_dir={root!r}, splitting_ops=["tests::attention"],
               dynamic_arg_dims={{"ids": 0}}, on_miss=sys.argv[1])
    assert torch.allclose(model(ids), want, atol=1e-5)
print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""
    root = tmp_path / "root"
    root.mkdir(0o755)
    text = program.format(path=[p for p in sys.path if p], root=str(root))
    done = subprocess.run(
        [sys.executable, "-c", text, "compile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    again = subprocess.run(
        [sys.executable, "-c", text, "error"], env={"PATH": ""}, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == "[]"


def test_grad_mode_is_refused_with_the_reason() -> None:
    compiler = make_compiler("aot_inductor")
    with torch.enable_grad():
        options = CompileOptions()
    with pytest.raises(CompilerError) as refused:
        compiler.compile(piece_of(lambda x: x + 1, torch.randn(3)), Range(1, 8), options)
    assert str(refused.value) == (
        "AOTInductor's pieces record no gradients\n"
        "  expected: a call under torch.no_grad() or torch.inference_mode()\n"
        "  got: grad mode on\n"
        "  to do: backend='inductor' serves calls that record gradients"
    )


def test_another_compilers_artifact_is_refused() -> None:
    with pytest.raises(CompilerError, match="was handed an artifact it did not make"):
        make_compiler("aot_inductor").load(Artifact("inductor", "submod_0", Range(1, 8), b"{}"))


@pytest.mark.inductor
def test_a_piece_it_cannot_take_is_named_or_stays_eager(no_grad: None) -> None:
    def bits(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.view(torch.int32), torch.relu(x)

    fields: dict[str, Any] = {"backend": "aot_inductor", "disable_cache": True, "splitting_ops": []}
    x = torch.randn(5, 4)
    with pytest.raises(PieceCompileError) as refused:
        tp.compile(bits, **fields, dynamic_arg_dims={"x": 0})(x)
    assert refused.value.what.startswith("submod_0 failed to compile for sizes [1, ")
    assert refused.value.got == (
        "CompileError: AOTInductor cannot take an output that reads the memory of an input of torch.float32 "
        "as torch.int32"
    )
    eager = tp.compile(bits, **fields, dynamic_arg_dims={"x": 0}, on_piece_error="eager")
    assert_same(eager(x), bits(x))


HEADERS = """
import os, sys, torch
from pathlib import Path
import torch_piecewise as tp
from tests.bundles import served
from torch_piecewise.compilers.aot_inductor import AOTInductorCompiler
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.torch_private.aoti_compile import build_aoti_headers
from torch_piecewise.torch_private.toolchain import with_known_cpu

def headers():
    return {one.name for one in Path(os.environ["TMPDIR"]).glob("*/precompiled_headers/*.gch")}

build_aoti_headers(with_known_cpu({}))
before = headers()
settings = {**served.PLAIN_SETTINGS, "disable_cache": True, "compile_threads": 1}
tp.bake(served.Plain(), served.example("Plain", 5), sys.argv[1], **settings)
print(len(before), sorted(headers() - before))
"""


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.timeout(600)
def test_the_headers_that_are_built_ahead_are_those_that_a_piece_includes(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()  # where torch keeps headers
    done = subprocess.run(
        [sys.executable, "-c", HEADERS, str(tmp_path / "b")],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        capture_output=True,
        text=True,
        check=False,
    )
    shutil.rmtree(tmp_path / "tmp")  # hundreds of megabytes
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "2 []"
