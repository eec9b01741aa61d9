from __future__ import annotations

import operator

import pytest
import torch
from torch import fx

from torch_piecewise.passes.cleanup import CleanUp

from .graphs import functionalized, lines, ops, text_of, traced


def test_what_nobody_reads_is_removed():
    def forward(x: torch.Tensor) -> torch.Tensor:
        x.cos().exp()
        return x.sin()

    module = traced(forward, torch.randn(4))
    assert text_of(module) == lines("""
        x_1 = placeholder
        cos = aten.cos.default(x_1)
        exp = aten.exp.default(cos)
        sin = aten.sin.default(x_1)
        return sin
    """)
    assert CleanUp()(module.graph) == 2
    assert text_of(module) == lines("""
        x_1 = placeholder
        sin = aten.sin.default(x_1)
        return sin
    """)


def test_an_input_that_nobody_reads_stays():
    module = traced(lambda x, y: y.sin(), torch.randn(4), torch.randn(4))
    CleanUp()(module.graph)
    assert text_of(module).startswith("x_1 = placeholder\ny_1 = placeholder\n")


def test_sizes_and_their_arithmetic_are_removed():
    module = traced(lambda x: (x.view(x.shape[0] * x.shape[1]), x.sin())[1], torch.randn(4, 3))
    assert "mul" in text_of(module)
    CleanUp()(module.graph)
    assert text_of(module) == lines("""
        x_1 = placeholder
        sin = aten.sin.default(x_1)
        return sin
    """)


def dead_call(target: object, *args: object) -> fx.Graph:
    """A graph that calls ``target`` on its input and reads nothing of it."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(4, device="meta")
    graph.call_function(target, tuple(x if arg == "x" else arg for arg in args))
    graph.output((x,))
    return graph


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (torch.ops.aten.add_.Tensor, ("x", 1)),
        (torch.ops.aten.copy_.default, ("x", "x")),
        (torch.ops.aten.rand_like.default, ("x",)),
        (torch.ops.aten._assert_async.default, ("x",)),
        (torch.ops.aten._assert_scalar.default, (True, "no")),
        (ops.note.default, ("x",)),
        (ops.bump.default, ("x", "x")),
        (ops.scale_into.default, ("x", "x", 1.0)),
        (print, ("x",)),
        (operator.iadd, ("x", 1)),
        (operator.setitem, ("x", 0, 1)),
        (torch.ops.higher_order.with_effects, ("x",)),
        (torch.ops.higher_order.cond, ("x",)),
    ],
    ids=str,
)
def test_a_call_that_may_have_an_effect_stays_though_nobody_reads_it(target, args):
    graph = dead_call(target, *args)
    before = text_of(graph)
    assert CleanUp()(graph) == 0
    assert text_of(graph) == before


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_a_collective_stays_though_nobody_reads_it():
    import torch.distributed._functional_collectives

    graph = dead_call(torch.ops._c10d_functional.all_reduce.default, "x", "sum", "0")
    assert CleanUp()(graph) == 0


def test_a_size_that_depends_on_data_stays():
    module = traced(lambda x: (x.nonzero(), x.sin())[1], torch.ones(4))
    assert any(node.meta.get("unbacked_bindings") for node in module.graph.nodes)
    CleanUp()(module.graph)
    assert "nonzero" in text_of(module)


def test_a_functionalized_call_that_nobody_reads_is_removed():
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.empty_like(x)
        ops.scale_into(x, out, 2.0)
        return x + 1, out

    graph = functionalized(forward, torch.randn(4)).module.graph
    output = next(iter(reversed(graph.nodes)))
    output.args = (output.args[0][:1],)
    assert "auto_functionalized" in text_of(graph)
    CleanUp()(graph)
    assert text_of(graph) == lines("""
        arg0_1 = placeholder
        add = aten.add.Tensor(arg0_1, 1)
        return (add,)
    """)


def test_a_dead_node_is_removed_after_its_last_reader():
    graph = fx.Graph()
    node = graph.placeholder("x")
    for _ in range(5):
        node = graph.call_function(torch.ops.aten.sin.default, (node,))
    graph.output(())
    assert CleanUp()(graph) == 5
    assert text_of(graph) == "x = placeholder\nreturn ()\n"


def test_nodes_are_put_in_order_first():
    graph = fx.Graph()
    x = graph.placeholder("x")
    early = graph.call_function(torch.ops.aten.sin.default, (x,))
    late = graph.call_function(torch.ops.aten.cos.default, (x,))
    early.args = (late,)
    graph.output(early)
    CleanUp()(graph)
    assert text_of(graph) == lines("""
        x = placeholder
        cos_default = aten.cos.default(x)
        sin_default = aten.sin.default(cos_default)
        return sin_default
    """)
