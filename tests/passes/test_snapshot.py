from __future__ import annotations

import pytest
import torch
from torch import fx

from torch_piecewise.passes.snapshot import Snapshot, order_problem

from .graphs import text_of

aten = torch.ops.aten


@pytest.fixture
def graph() -> fx.Graph:
    made = fx.Graph()
    x = made.placeholder("x")
    y = made.placeholder("y")
    first = made.create_node("call_function", aten.add.Tensor, (x, y), {"alpha": 2}, name="first")
    second = made.create_node("call_function", aten.sin.default, (first,), name="second")
    first.meta["val"] = "of first"
    made.output((second, [first]))
    return made


def named(graph: fx.Graph, name: str) -> fx.Node:
    return next(node for node in graph.nodes if node.name == name)


def erase_all(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        graph.erase_node(node)


def erase_used(graph: fx.Graph) -> None:
    first = named(graph, "first")
    first.replace_all_uses_with(named(graph, "x"))
    graph.erase_node(first)


def reorder(graph: fx.Graph) -> None:
    named(graph, "x").append(named(graph, "second"))


def add_and_rename(graph: fx.Graph) -> None:
    with graph.inserting_before(named(graph, "second")):
        extra = graph.call_function(aten.cos.default, (named(graph, "first"),))
        more = graph.call_function(aten.exp.default, (extra,))
    named(graph, "second").args = (more,)
    named(graph, "second").target = aten.tan.default
    named(graph, "first").meta["val"] = "changed"
    named(graph, "first").kwargs = {}


def leave_insert_point(graph: fx.Graph) -> None:
    graph.inserting_before(named(graph, "first"))
    erase_all(graph)


def make_loop(graph: fx.Graph) -> None:
    named(graph, "first").args = (named(graph, "second"), named(graph, "second"))


@pytest.mark.parametrize(
    "damage", [erase_all, erase_used, reorder, add_and_rename, leave_insert_point, make_loop]
)
def test_a_graph_comes_back_from(graph, damage):
    before = text_of(graph)
    snapshot = Snapshot(graph)
    damage(graph)
    assert text_of(graph) != before
    snapshot.restore()
    assert text_of(graph) == before
    assert snapshot.problem() is None
    assert named(graph, "first").meta == {"val": "of first"}
    assert named(graph, "first").users.keys() == {named(graph, "second"), named(graph, "output")}


def test_nodes_that_were_not_erased_stay_themselves(graph):
    before = list(graph.nodes)
    snapshot = Snapshot(graph)
    add_and_rename(graph)
    snapshot.restore()
    assert list(graph.nodes) == before


def test_a_restored_graph_runs(graph):
    snapshot = Snapshot(graph)
    erase_all(graph)
    snapshot.restore()
    module = fx.GraphModule({}, graph)
    x, y = torch.randn(3), torch.randn(3)
    second, [first] = module(x, y)
    assert torch.equal(first, x + 2 * y)
    assert torch.equal(second, first.sin())


def swap_inputs(graph: fx.Graph) -> None:
    named(graph, "y").append(named(graph, "x"))


def drop_input(graph: fx.Graph) -> None:
    named(graph, "y").replace_all_uses_with(named(graph, "x"))
    graph.erase_node(named(graph, "y"))


def drop_output(graph: fx.Graph) -> None:
    named(graph, "output").args = ((named(graph, "second"),),)


def flatten_output(graph: fx.Graph) -> None:
    named(graph, "output").args = ((named(graph, "second"), named(graph, "first")),)


def erase_output(graph: fx.Graph) -> None:
    graph.erase_node(named(graph, "output"))


def second_output(graph: fx.Graph) -> None:
    graph.output(named(graph, "first"))


def output_first(graph: fx.Graph) -> None:
    graph.output(())
    graph.erase_node(named(graph, "output"))
    graph.create_node("call_function", aten.sin.default, (named(graph, "x"),))


def foreign_argument(graph: fx.Graph) -> None:
    named(graph, "second").args = (fx.Graph().placeholder("z"),)


def no_arguments(graph: fx.Graph) -> None:
    named(graph, "second").args = ()


def too_many_arguments(graph: fx.Graph) -> None:
    named(graph, "second").args = (named(graph, "x"),) * 9


def unknown_argument(graph: fx.Graph) -> None:
    with graph.inserting_before(named(graph, "output")):
        graph.create_node("call_function", aten.sin.default, (), {"other": named(graph, "x")})


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (no_arguments, "second calls aten."),
        (too_many_arguments, "second calls aten."),
        (unknown_argument, "sin_default calls aten.sin.default, which takes (self), without self"),
        (reorder, "Argument 'first' of Node 'second' was used before it has been defined!"),
        (make_loop, "Argument 'second' of Node 'first' was used before it has been defined!"),
        (foreign_argument, "Argument 'z' of Node 'second' does not belong to this Graph"),
        (swap_inputs, "its inputs were (x, y) and are (y, x)"),
        (drop_input, "its inputs were (x, y) and are (x)"),
        (drop_output, "its outputs had the structure (*, (*)) and have (*)"),
        (flatten_output, "its outputs had the structure (*, (*)) and have (*, *)"),
        (erase_output, "it has 0 output nodes, and must have one, at the end"),
        (second_output, "it has 2 output nodes, and must have one, at the end"),
        (output_first, "it has 1 output nodes, and must have one, at the end"),
    ],
)
def test_a_broken_graph_is_known_after(graph, damage, problem):
    snapshot = Snapshot(graph)
    damage(graph)
    found = snapshot.problem()
    assert found is not None
    assert found.startswith(problem)
    assert "\n" not in found


def test_a_rewrite_that_keeps_inputs_and_outputs_is_no_problem(graph):
    snapshot = Snapshot(graph)
    add_and_rename(graph)
    assert snapshot.problem() is None
    assert order_problem(graph) is None
