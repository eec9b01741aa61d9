"""Lowering first, building kernels later; on CPU, with Inductor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from torch_piecewise.artifact import Artifact
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.compilers.inductor import InductorCompiler
from torch_piecewise.manager.errors import piece_error
from torch_piecewise.manager.pieces import piece_of
from torch_piecewise.manager.units import Unit
from torch_piecewise.pool import CompilePool, CompileTask
from torch_piecewise.ranges import Range

pytestmark = pytest.mark.inductor

EVERY = Range(1, 64)


def begun(function: Callable[[Tensor], Tensor], options: CompileOptions) -> Callable[[], Artifact]:
    return InductorCompiler().begin(described(function), EVERY, options)


def described(function: Callable[[Tensor], Tensor]) -> Any:
    """Its inputs are the two sizes of a matrix, and the matrix."""
    graphs: list[Any] = []
    torch.compile(function, dynamic=True, backend=lambda graph, _inputs: graphs.append(graph) or graph)(
        torch.randn(5, 3)
    )
    return piece_of(graphs[0], ())


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of torch's with no kernel in it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return tmp_path


def test_nothing_is_built_before_the_second_step(own_cache: Path, no_grad: None) -> None:
    first = begun(lambda x: (x * 2).sin() + 1, CompileOptions())
    second = begun(lambda x: x.exp().sum(-1, keepdim=True) * x, CompileOptions())
    assert not list(own_cache.rglob("*.so"))
    x = torch.randn(7, 3)
    for finish, expected in [(second, x.exp().sum(-1, keepdim=True) * x), (first, (x * 2).sin() + 1)]:
        artifact = finish()
        assert list(artifact.files)
        (result,) = InductorCompiler().load(artifact)(*x.shape, x)
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    assert list(own_cache.rglob("*.so"))


def test_other_threads_get_their_kernels_at_once(own_cache: Path, no_grad: None) -> None:
    from torch._inductor import async_compile

    from torch_piecewise.torch_private.late_kernels import kernels_later

    before = vars(async_compile.AsyncCompile)["wait"]
    results: list[Tensor] = []
    x = torch.randn(9, 4)
    with kernels_later() as late:
        assert vars(async_compile.AsyncCompile)["wait"] is not before
        compiled = torch.compile(lambda x: x.cos() * 3 - 1, dynamic=True)
        other = threading.Thread(target=lambda: results.append(compiled(x)))
        other.start()
        other.join()
    assert not late.are_wanted
    assert vars(async_compile.AsyncCompile)["wait"] is before
    torch.testing.assert_close(results[0], x.cos() * 3 - 1)


def test_the_methods_are_put_back_after_an_error() -> None:
    from torch._inductor import async_compile

    from torch_piecewise.torch_private.late_kernels import kernels_later

    before = vars(async_compile.AsyncCompile)["wait"]
    with pytest.raises(RuntimeError, match="in the middle"), kernels_later():
        raise RuntimeError("in the middle")
    assert vars(async_compile.AsyncCompile)["wait"] is before


def test_a_module_that_is_called_too_early_builds_its_kernels_itself(own_cache: Path, no_grad: None) -> None:
    """Such as one that torch remembers for equal code compiled elsewhere."""
    from torch_piecewise.torch_private.late_kernels import kernels_later

    x = torch.randn(6, 4)
    with kernels_later() as late:
        compiled = torch.compile(lambda x: x.tan() * 5 + 2, dynamic=True)
        torch.testing.assert_close(compiled(x), x.tan() * 5 + 2)
    assert late.are_wanted
    late.wait()
    torch.testing.assert_close(compiled(x), x.tan() * 5 + 2)


def test_a_kernel_that_cannot_be_built_is_the_pieces_failure(own_cache: Path, no_grad: None) -> None:
    compiler = own_cache / "g++"
    refuses = 'case "$*" in *main.cpp*) echo "fatal error: none today" >&2; exit 1;; esac'
    compiler.write_text(f'#!/bin/sh\n{refuses}\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    options = CompileOptions(inductor_config={"cpp.cxx": (str(compiler),)})
    task = CompileTask(InductorCompiler(), described(lambda x: x.sigmoid() * 7), EVERY, options)
    (outcome,) = CompilePool().run([task])
    assert isinstance(outcome.result, Exception)
    told = str(
        piece_error(Unit("f", "submod_0", EVERY, lambda _name: task.piece), "inductor", outcome.result)
    )
    assert "got: fatal error: none today" in told
    assert "to do: install g++ or name another compiler with CXX" in told


def test_settings_of_the_compiler_are_in_force_when_kernels_are_built(own_cache: Path, no_grad: None) -> None:
    log = own_cache / "commands"
    compiler = own_cache / "g++"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    options = CompileOptions(
        inductor_config={"cpp.cxx": (str(compiler),), "cpp.enable_floating_point_contract_flag": "fast"}
    )
    artifact = begun(lambda x: x.erf() * 11, options)()
    assert artifact.files
    built = [line for line in log.read_text().splitlines() if "main.cpp" in line]
    assert len(built) == 1  # and not once more with other flags
    assert "-ffp-contract=fast" in built[0]


def test_a_start_builds_the_kernels_of_all_pieces(own_cache: Path, no_grad: None) -> None:
    from tests.graphs import Stack

    model = Stack(3).eval()
    ids = torch.randint(0, 50, (6,))
    expected = model(ids)
    compiled = tp.compile(
        model,
        dynamic_arg_dims={"ids": 0},
        splitting_ops=["tests::attention"],
        cache_dir=str(own_cache / "store"),
    )
    torch.testing.assert_close(compiled(ids), expected, rtol=1e-5, atol=1e-5)
    assert tp.program_of(compiled).stats.distinct_pieces == 3
