"""How a call's result is written down in a bundle, and built again from that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torch_piecewise as tp
from tests.start import results
from tests.start.test_results import parts
from torch_piecewise.baking.result import result_document
from torch_piecewise.runtime.names import Named
from torch_piecewise.runtime.result import result_function


def nothing(_value: Any) -> None:
    return None


KINDS = [kind for kind in results.MODELS if kind is not results.Size]


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_result_of_more_than_tensors_is_written_down_and_built_again(kind: type[nn.Module]) -> None:
    model, x = kind(), torch.randn(4)
    expected = kind().forward(x)
    tp.compile(model, dynamic_arg_dims={"x": 0}, backend="eager", disable_cache=True)(x)
    (entry,) = tp.program_of(model).entries
    document = result_document(entry, (x,), {}, Named(nothing, nothing))
    given = [(x.sin(),) if name == document["outputs"] else x for name in document["parameters"]]
    built = result_function(document, model)(*given)
    assert type(built) is type(expected)
    assert parts(built) == parts(expected)
