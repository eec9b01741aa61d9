from __future__ import annotations

import torch

from torch_piecewise.passes.text import graph_text

from .graphs import lines, traced


def test_a_graph_is_one_line_a_node():
    module = traced(lambda x: (torch.ops.aten.slice.Tensor(x, 1, 1, 5) + 1, x.split(2)[0]), torch.randn(4, 6))
    assert graph_text(module.graph) == lines("""
        x_1 = placeholder
        slice_1 = aten.slice.Tensor(x_1, 1, 1, 5)
        add = aten.add.Tensor(slice_1, 1)
        split = aten.split.Tensor(x_1, 2)
        getitem = getitem(split, 0)
        getitem_1 = getitem(split, 1)
        return (add, getitem)
    """)


def test_shapes_are_written_on_request():
    module = traced(lambda x: x.sin().sum(), torch.randn(4, 6))
    text = graph_text(module.graph, shapes=True)
    symbols = [str(size) for size in next(iter(module.graph.nodes)).meta["val"].shape]
    assert text.splitlines()[1] == f"sin: float32[{', '.join(symbols)}] = aten.sin.default(x_1)"
    assert text.splitlines()[2] == "sum_1: float32[] = aten.sum.default(sin)"


def test_attributes_and_modules_are_named():
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(2, 2)
            self.scale = torch.nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).mul(self.scale)

    assert graph_text(torch.fx.symbolic_trace(Model()).graph) == lines("""
        x = placeholder
        inner = self.inner(x)
        scale = self.scale
        mul = .mul(inner, scale)
        return mul
    """)
