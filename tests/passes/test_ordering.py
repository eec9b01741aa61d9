from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from torch_piecewise.errors import PassError
from torch_piecewise.passes.ordering import stable_topological_sort

from .graphs import lines, text_of

aten = torch.ops.aten


def call(graph: fx.Graph, name: str, target: object, *args: object) -> fx.Node:
    return graph.create_node("call_function", target, args, name=name)


def test_a_graph_in_order_is_left_as_it_is():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(call(graph, "b", aten.cos.default, call(graph, "a", aten.sin.default, x)))
    before = list(graph.nodes)
    assert stable_topological_sort(graph) == 0
    assert list(graph.nodes) == before


def test_only_what_must_move_moves():
    graph = fx.Graph()
    x = graph.placeholder("x")
    user = call(graph, "user", aten.exp.default, x)
    other = call(graph, "other", aten.cos.default, x)
    source = call(graph, "source", aten.sin.default, x)
    user.args = (source,)
    graph.output((user, other))
    assert stable_topological_sort(graph) == 3
    assert text_of(graph) == lines("""
        x = placeholder
        other = aten.cos.default(x)
        source = aten.sin.default(x)
        user = aten.exp.default(source)
        return (user, other)
    """)
    graph.lint()


def test_a_reader_does_not_move_across_a_write():
    graph = fx.Graph()
    x = graph.placeholder("x")
    late = call(graph, "late", aten.exp.default, x)
    read = call(graph, "read", aten.sin.default, x)
    write = call(graph, "write", aten.add_.Tensor, x, 1)
    read_after = call(graph, "read_after", aten.sin.default, x)
    source = call(graph, "source", aten.ones.default, [2])
    late.args = (source,)
    graph.output((late, read, write, read_after))
    stable_topological_sort(graph)
    names = [node.name for node in graph.nodes]
    assert names.index("read") < names.index("write") < names.index("read_after")
    assert names.index("source") < names.index("late")


def test_a_view_does_not_hide_a_write():
    graph = fx.Graph()
    x = graph.placeholder("x")
    early = call(graph, "early", aten.exp.default, x)
    base = call(graph, "base", aten.ones.default, [4])
    view = call(graph, "view", aten.view.default, base, [2, 2])
    read = call(graph, "read", aten.sin.default, base)
    write = call(graph, "write", aten.mul_.Tensor, view, 2)
    early.args = (call(graph, "source", aten.cos.default, x),)
    graph.output((early, read, write))
    stable_topological_sort(graph)
    names = [node.name for node in graph.nodes]
    assert names.index("read") < names.index("write")


def test_random_numbers_are_drawn_in_the_old_order():
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = call(graph, "first", aten.rand_like.default, x)
    second = call(graph, "second", aten.rand_like.default, x)
    first.args = (call(graph, "source", aten.cos.default, x),)
    graph.output((first, second))
    stable_topological_sort(graph)
    assert [node.name for node in graph.nodes] == ["x", "source", "first", "second", "output"]


def test_a_write_that_would_have_to_move_is_an_error_that_names_it():
    graph = fx.Graph()
    x = graph.placeholder("x")
    write = call(graph, "write", aten.add_.Tensor, x, 1)
    read = call(graph, "read", aten.sin.default, x)
    write.args = (x, read)
    graph.output(read)
    with pytest.raises(PassError) as caught:
        stable_topological_sort(graph)
    assert str(caught.value) == (
        "The graph cannot be put in order\n"
        "  expected: no value that depends on itself, and no write that would have to move\n"
        "  got: nodes that wait for each other: write, read, output\n"
        "  to do: insert new nodes right before their first user"
    )


def test_a_value_that_depends_on_itself_is_an_error():
    graph = fx.Graph()
    x = graph.placeholder("x")
    one = call(graph, "one", aten.sin.default, x)
    two = call(graph, "two", aten.sin.default, one)
    one.args = (two,)
    graph.output(two)
    with pytest.raises(PassError, match="wait for each other: one, two"):
        stable_topological_sort(graph)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 14))
def test_any_shuffled_graph_comes_back_in_order(seed, size):
    pick = random.Random(seed)
    graph = fx.Graph()
    nodes = [graph.placeholder("x")]
    for number in range(size):
        sources = pick.choices(nodes, k=2)
        nodes.append(call(graph, f"n{number}", aten.add.Tensor, *sources))
    output = graph.output(tuple(nodes))
    calls = nodes[1:]
    pick.shuffle(calls)
    for node in calls:
        output.prepend(node)
    stable_topological_sort(graph)
    graph.lint()
    assert {node.name for node in graph.nodes} == {node.name for node in [*nodes, output]}
    assert stable_topological_sort(graph) == 0
