from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from torch_piecewise.errors import GuardError
from torch_piecewise.integrations.attention_cut import (
    AttentionCall,
    attention,
    attention_call,
    current_call,
    options_text,
    traced_attention,
)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> tuple[Tensor, Any]:
    found = query * module.factor + key + value + options.get("bias", 0)
    if mask is not None:
        found = found + mask
    return (found * options.get("scaling", 1.0)).transpose(1, 2).contiguous(), None


class Twice:
    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        return keys * 2, values * layer


def scene(**parts: Any) -> AttentionCall:
    return AttentionCall({3: SimpleNamespace(factor=5.0)}, attend, **parts)


@pytest.mark.parametrize("given", [{}, {"scaling": 0.1, "softcap": None, "name": "a 'b'", "window": 4}])
def test_options_come_back_as_they_were(given: dict[str, Any]) -> None:
    assert scene().options(options_text(given)) == given


def test_masks_are_found_by_layer_and_the_rest_shares_one() -> None:
    q = torch.randn(1, 2, 3, 4)
    one, other = torch.randn(3, 4), torch.randn(3, 4)
    for call, mask in ((scene(mask=one), one), (scene(mask=one, masks={3: other}), other)):
        assert torch.equal(call.run(3, q, q, q, {})[0], (q * 5 + q + q + mask).transpose(1, 2))


@pytest.mark.usefixtures("no_grad")
def test_a_compiled_function_does_at_the_cut_what_it_does_without_compiling() -> None:
    def step(x: Tensor, bias: Tensor) -> Tensor:
        options = {"scaling": 0.5, "bias": bias}
        found, _ = traced_attention(3, x.sin(), x.cos(), x + 1, options)
        return found + 1

    compiled = tp.compile(step, backend="eager", splitting_ops=[attention.name], dynamic_arg_dims={"x": 2})
    x, bias = torch.randn(2, 2, 5, 4), torch.randn(4)
    for mask in (None, torch.randn(4)):
        with attention_call(scene(cache=Twice(), mask=mask)):
            assert torch.equal(compiled(x, bias), step(x, bias))
    assert tp.program_of(compiled).stats.cuts == 1


def test_calls_of_several_models_stand_inside_each_other() -> None:
    outer, inner = scene(), scene()
    with attention_call(outer):
        with attention_call(inner):
            assert current_call() is inner
        assert current_call() is outer
    with pytest.raises(GuardError, match="called without the model around it"):
        current_call()
