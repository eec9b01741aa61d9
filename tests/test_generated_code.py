"""The code that Inductor generated, called with inputs one by one and without checks made elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import torch_piecewise as tp
from torch_piecewise.torch_private.generated_code import load_generated_code

WRAPPER = """
import torch
from torch._inductor.async_compile import AsyncCompile
async_compile = AsyncCompile()
assert_size_stride = torch._C._dynamo.guards.assert_size_stride
async_compile.wait(globals())
del async_compile

class Runner:
    def __init__(self, partitions):
        self.partitions = partitions

    def call(self, args):
        arg0_1, arg1_1 = args
        args.clear()
        s0 = arg0_1.size()[0]
        assert_size_stride(arg0_1, (s0, 2), (2, 1), 'input')
        assert_size_stride(arg1_1, (2, ), (1, ), 'input')
        return (arg0_1 + arg1_1, )

runner = Runner(partitions=[])
call = runner.call
"""

OTHER_FORM = """
async_compile = AsyncCompile()

def call(args):
    return (args[0] * 2, )
"""


def test_inputs_are_taken_one_by_one_and_all_are_checked() -> None:
    piece = load_generated_code(WRAPPER, {})
    x, y = torch.randn(3, 2), torch.randn(2)
    assert torch.equal(piece(x, y)[0], x + y)
    with pytest.raises(AssertionError):
        piece(torch.randn(2, 3).t(), y)
    with pytest.raises(AssertionError):
        piece(x, torch.randn(1))


def test_only_the_checks_of_inputs_that_are_known_are_left_out() -> None:
    piece = load_generated_code(WRAPPER, {})
    knowing = piece.knowing(frozenset({1}))
    x = torch.randn(3, 2)
    assert torch.equal(knowing(x, torch.ones(1))[0], x + 1)
    with pytest.raises(AssertionError):
        knowing(torch.randn(2, 3).t(), torch.ones(1))
    with pytest.raises(AssertionError):
        piece(x, torch.ones(1))


def test_code_of_another_form_runs_as_it_is() -> None:
    piece = load_generated_code(OTHER_FORM, {})
    x = torch.randn(3)
    assert torch.equal(piece.knowing(frozenset({0}))(x)[0], x * 2)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.weight) + 1


def test_a_parameter_turned_in_place_is_noticed_by_code_without_checks(tmp_path: Path) -> None:
    # One program for both calls: that its pieces check nothing of the weight must not let the turn through.
    layer = Layer().eval()
    with torch.no_grad():
        compiled = tp.compile(layer, cache_dir=tmp_path, dynamic_arg_dims={"x": 0})
        x = torch.randn(3, 4)
        assert torch.allclose(compiled(x), torch.relu(x @ layer.weight) + 1)
        layer.weight.t_()
        assert torch.allclose(compiled(x), torch.relu(x @ layer.weight) + 1)
        assert tp.program_of(compiled).stats.traces == 2
