from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule

from tests.graphs import attention, traced
from torch_piecewise.splitting import split_graph
from torch_piecewise.splitting_ops import body_lookup
from torch_piecewise.stitching import Stitched, stitch


def stitched(graph: GraphModule, splitting_ops: list[Any]) -> tuple[Stitched, Any]:
    module, items = split_graph(graph, splitting_ops)
    line = stitch(module, [item.submod_name for item in items if item.is_splitting_graph])
    return line, line.bind({item.submod_name: item.graph.forward for item in items})


def test_the_source_reads_as_the_model_does() -> None:
    graph = traced(lambda x: torch.sigmoid(x + 1) * 2, torch.randn(3))
    line, _run = stitched(graph, ["torch.sigmoid"])
    assert line.source == (
        "def make(submod_0, submod_2, sigmoid):\n"
        "    def run(l_x_):\n"
        "        add, = submod_0(l_x_)\n"
        "        del l_x_\n"
        "        sigmoid_1 = sigmoid(add)\n"
        "        del add\n"
        "        mul, = submod_2(sigmoid_1)\n"
        "        del sigmoid_1\n"
        "        return (mul,)\n"
        "    return run\n"
    )


def test_for_captures_each_run_of_cuts_is_a_marked_step() -> None:
    graph = traced(lambda x: torch.tanh(torch.sigmoid(x + 1)) * 2, torch.randn(3))
    module, items = split_graph(graph, ["torch.sigmoid", "torch.tanh"])
    line = stitch(module, [item.submod_name for item in items if item.is_splitting_graph], as_steps=True)
    assert line.source == (
        "def make(submod_0, submod_2, sigmoid, tanh, cut_step):\n"
        "    def cut_1(add):\n"
        "        sigmoid_1 = sigmoid(add)\n"
        "        tanh_1 = tanh(sigmoid_1)\n"
        "        return (tanh_1,)\n"
        "    cut_1 = cut_step(cut_1)\n"
        "    def run(l_x_):\n"
        "        add, = submod_0(l_x_)\n"
        "        del l_x_\n"
        "        tanh_1, = cut_1(add)\n"
        "        del add\n"
        "        mul, = submod_2(tanh_1)\n"
        "        del tanh_1\n"
        "        return (mul,)\n"
        "    return run\n"
    )
    x = torch.randn(3)
    (got,) = line.bind({item.submod_name: item.graph.forward for item in items})(x)
    assert torch.equal(got, torch.tanh(torch.sigmoid(x + 1)) * 2)


def test_the_line_computes_what_the_graph_does() -> None:
    def model(x: Tensor, y: Tensor) -> Any:
        values, indices = torch.max(x, 0)
        z = torch.sigmoid(values)
        y[1:3] = z[1:3]
        return y.sum(), indices, z.to(torch.float64), None, 3

    x, y = torch.randn(4, 4), torch.randn(4)
    graph = traced(model, x, y)
    _line, run = stitched(graph, ["torch.sigmoid"])
    expected = graph(x, y.clone())
    for want, got in zip(expected, run(x, y.clone()), strict=True):
        assert torch.equal(want, got)


def test_a_splitting_op_is_called_by_its_body_without_the_dispatcher() -> None:
    def model(q: Tensor) -> Tensor:
        out = torch.empty_like(q)
        attention(q * 2, q, q, out, "here")
        return out + 1

    q = torch.randn(3, 4)
    line, run = stitched(traced(model, q), ["tests::attention"])
    direct = line.replaced(body_lookup(grad_enabled=False))
    assert attention.body in direct.constants.values()
    assert attention.op in line.constants.values()
    assert body_lookup(grad_enabled=True)(attention.op) is None
    _module, items = split_graph(traced(model, q), ["tests::attention"])
    pieces = {item.submod_name: item.graph.forward for item in items}
    assert torch.equal(direct.bind(pieces)(q)[0], run(q)[0])


def test_a_value_is_freed_after_its_last_use() -> None:
    alive: list[int] = []
    refs: list[weakref.ref[Tensor]] = []

    def first(x: Tensor) -> tuple[Tensor]:
        big = x + 1
        refs.append(weakref.ref(big))
        return (big,)

    def last(x: Tensor) -> tuple[Tensor]:
        gc.collect()
        alive.append(sum(ref() is not None for ref in refs))
        return (x * 2,)

    graph = traced(lambda x: torch.sigmoid(x + 1) * 2, torch.randn(3))
    module, _items = split_graph(graph, ["torch.sigmoid"])
    line = stitch(module, ["submod_1"])
    line.bind({"submod_0": first, "submod_2": last})(torch.randn(3))
    assert alive == [0]


def test_names_of_builtins_and_of_pieces_are_not_shadowed() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("slice")
    y = graph.call_function(torch.relu, (graph.call_function(torch.sigmoid, (x,)),))
    y.name = "submod_0"
    graph.output((graph.call_method("__getitem__", (y, slice(1, None))),))
    module = GraphModule(torch.nn.Module(), graph)
    _line, run = stitched(module, ["torch.sigmoid"])
    value = torch.randn(3)
    assert torch.equal(run(value)[0], value.sigmoid().relu()[1:])


OPS = st.sampled_from(["relu", "sigmoid", "tanh", "neg", "exp"])


@settings(max_examples=40)
@given(st.lists(st.tuples(OPS, st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=12), st.data())
def test_random_graphs_cut_anywhere_compute_the_same(steps: list[tuple[str, int, int]], data: Any) -> None:
    graph = torch.fx.Graph()
    values = [graph.placeholder("a"), graph.placeholder("b")]
    for name, left, right in steps:
        one = graph.call_function(getattr(torch, name), (values[left % len(values)],))
        values.append(graph.call_function(torch.add, (one, values[right % len(values)])))
    results = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    graph.output(tuple(results))
    module = GraphModule(torch.nn.Module(), graph)
    inputs = torch.randn(3), torch.randn(3)
    expected = module(*inputs)
    cuts = data.draw(st.lists(OPS, max_size=3, unique=True))
    _line, run = stitched(module, [f"torch.{name}" for name in cuts])
    for want, got in zip(expected, run(*inputs), strict=True):
        assert torch.equal(want, got)
