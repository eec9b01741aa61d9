"""``use_inductor_graph_partition``: the graph whole, the splitting ops told to Inductor."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
import torch

import torch_piecewise as tp
from tests.graphs import Stack, attention
from torch_piecewise.artifact_store import artifact_ingredients
from torch_piecewise.compilers import make_compiler
from torch_piecewise.compilers.base import Ambient
from torch_piecewise.errors import ConfigError, SplitError
from torch_piecewise.inductor_partition import partition_ops, partition_settings
from torch_piecewise.manager.options import options_of

pytestmark = pytest.mark.usefixtures("no_grad")


def config(**fields: Any) -> tp.Config:
    return tp.Config(use_inductor_graph_partition=True, **fields)


def test_inductor_gets_the_splitting_ops_by_the_names_it_knows() -> None:
    assert partition_ops(["tests::attention", "aten::mm.default"]) == ("tests::attention", "aten::mm.default")
    assert partition_ops([attention]) == ("tests::attention",)
    assert partition_ops([]) == ()
    known = partition_ops(None)
    assert "aten::_scaled_dot_product_flash_attention" in known
    assert all(name.startswith("aten::") for name in known)


def test_a_collective_is_a_cut_also_where_inductor_has_it_write_in_place() -> None:
    names = ["_c10d_functional::all_reduce", "_c10d_functional::wait_tensor", "_c10d_functional::all_reduce_"]
    assert partition_ops(names[:2]) == tuple(names)
    assert partition_ops(["_c10d_functional::all_reduce.default"]) == (
        "_c10d_functional::all_reduce.default",
        "_c10d_functional::all_reduce_.default",
    )


@pytest.mark.parametrize(
    "entry", [torch.nn.Linear, "torch.nn.functional.softmax", "torch.nn.Linear", lambda node: True]
)
def test_what_is_no_operation_is_refused(entry: Any) -> None:
    message = "(?s)partition cuts at operations only.*expected: .*'mylib::attention'.*cut the traced"
    with pytest.raises(ConfigError, match=message):
        partition_ops([entry])


def test_an_operation_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SplitError, match="'tests::atention' does not exist"):
        partition_ops(["tests::atention"])


def test_a_compile_is_told_and_what_the_user_says_of_inductor_beats_it() -> None:
    told = {"graph_partition": True, "custom_should_partition_ops": ["tests::attention"]}
    compiler = make_compiler("inductor")
    settings = config(splitting_ops=["tests::attention"])
    assert options_of(settings, compiler, Ambient.now()).inductor_config == told
    asked = settings.replace(inductor_compile_config={"graph_partition": False})
    assert options_of(asked, compiler, Ambient.now()).inductor_config == {**told, "graph_partition": False}


def test_a_model_traced_once_is_partitioned_nowhere() -> None:
    assert partition_settings(config(mode="trace_once"))["custom_should_partition_ops"] == []
    assert partition_settings(tp.Config()) == {}


@pytest.mark.parametrize("backend", ["eager", "aot_inductor", "my.compiler.Mine"])
def test_a_compiler_that_cannot_partition_is_refused(backend: str) -> None:
    with pytest.raises(ConfigError, match="use_inductor_graph_partition and backend contradict each other"):
        config(backend=backend)


@pytest.mark.parametrize("mode", ["piecewise", "full", "full_and_piecewise"])
def test_one_captures_this_library_or_inductor(mode: str) -> None:
    message = "(?s)cudagraph_mode and inductor_compile_config contradict.*leave 'triton.cudagraphs' out"
    with pytest.raises(ConfigError, match=message):
        config(cudagraph_mode=mode, inductor_compile_config={"triton.cudagraphs": True})
    config(inductor_compile_config={"triton.cudagraphs": True})


def test_partitions_are_functions_where_static_graphs_stand_around_them() -> None:
    compiler, ambient = make_compiler("inductor"), Ambient.now()
    asked = [config(), config(cudagraph_mode="full"), config(cudagraph_mode="full_and_piecewise")]
    assert [options_of(one, compiler, ambient).partitions for one in asked] == [False, False, True]
    assert not options_of(tp.Config(cudagraph_mode="piecewise"), compiler, ambient).partitions
    names = [
        {one.name for one in artifact_ingredients(compiler, options_of(c, compiler, ambient))} for c in asked
    ]
    assert ["partitions" in one for one in names] == [False, False, True]


@pytest.mark.inductor
def test_the_splitting_ops_are_told_to_inductor_and_the_graph_is_left_whole() -> None:
    model = Stack(2).eval()
    reference = copy.deepcopy(model)
    tp.compile(
        model,
        use_inductor_graph_partition=True,
        splitting_ops=["tests::attention"],
        dynamic_arg_dims={"ids": 0},
        disable_cache=True,
        compile_threads=1,
    )
    for n in (5, 1, 9):
        ids = torch.randint(0, 50, (n,))
        torch.testing.assert_close(model(ids), reference(ids))
    stats = tp.program_of(model).stats
    assert (stats.pieces, stats.cuts, stats.artifacts_compiled) == (1, 0, 1)


ON_CPU = """
import json, torch
from torch._inductor import config, utils
from torch._inductor.utils import run_and_get_code

wrapped = []
utils.set_customized_partition_wrappers(lambda run, metadata: wrapped.append(metadata) or run)

@torch.library.custom_op("reproduction::cut", mutates_args=())
def cut(x: torch.Tensor) -> torch.Tensor:
    return x + 1

@cut.register_fake
def _(x):
    return torch.empty_like(x)

options = {"graph_partition": True, "custom_should_partition_ops": ["reproduction::cut"]}
call = torch.compile(lambda x: cut(x.sin()).cos(), options=options)
x = torch.randn(8)
result, (code,) = run_and_get_code(call, x)
assert torch.allclose(result, (x.sin() + 1).cos())
print(json.dumps({"wrapped": len(wrapped), "functions": code.count("def partition_")}))
"""


@pytest.mark.inductor
def test_inductor_makes_no_partitions_of_cpu_code() -> None:
    """With torch alone, a wrapper set: why ``PartitionsOn`` tells the scheduler of other devices.

    ``Scheduler.should_partition`` leaves every operation that is not on a GPU to the code between partitions.
    """
    run = subprocess.run([sys.executable, "-c", ON_CPU], check=True, capture_output=True, text=True)
    assert json.loads(run.stdout.splitlines()[-1]) == {"wrapped": 0, "functions": 0}
