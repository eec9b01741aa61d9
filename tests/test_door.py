from __future__ import annotations

import subprocess
import sys

import pytest

import torch_piecewise as tp

NAMES = [
    "Artifact",
    "BatchDescriptor",
    "CUDAGraphDispatcher",
    "CUDAGraphMode",
    "CUDAGraphOptions",
    "CUDAGraphWrapper",
    "CompilerManager",
    "Config",
    "GraphPass",
    "PassManager",
    "PiecewiseCompileBackend",
    "Range",
    "SplitItem",
    "bake",
    "compile",
    "forward_context",
    "get_pass_context",
    "ignore",
    "load",
    "make_compiler",
    "make_copy_and_call",
    "pass_context",
    "program_of",
    "set_model_tag",
    "set_on_compilation_complete",
    "split_graph",
    "splitting_op",
]


def test_the_door_has_exactly_these_names() -> None:
    assert tp.__all__ == NAMES
    assert set(NAMES) <= set(dir(tp))


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there_and_is_no_module(name: str) -> None:
    assert callable(getattr(tp, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'torch_piecewise' has no attribute 'compil'"):
        tp.compil  # noqa: B018


def test_opening_the_door_loads_neither_dynamo_nor_inductor() -> None:
    program = (
        "import sys, torch, torch_piecewise as tp\n"
        "tp.compile(torch.nn.ReLU(), dynamic_arg_dims={'input': 0}); tp.Config(); tp.splitting_op\n"
        "assert not {'torch._dynamo', 'torch._inductor', 'sympy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
