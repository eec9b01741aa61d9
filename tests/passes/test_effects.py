from __future__ import annotations

import operator

import pytest
import torch
from torch import fx

from torch_piecewise.passes.effects import (
    Aliases,
    arguments_of,
    is_removable,
    reads_sizes_only,
    written_inputs,
)

from .graphs import ops, traced

aten = torch.ops.aten


@pytest.fixture
def graph() -> fx.Graph:
    return fx.Graph()


def call(graph: fx.Graph, target: object, *args: object, **kwargs: object) -> fx.Node:
    return graph.call_function(target, args, kwargs)


@pytest.mark.parametrize(
    ("target", "arguments", "shared"),
    [
        (aten.view.default, [[2, 2]], True),
        (aten.slice.Tensor, [0, 0, 1], True),
        (aten.reshape.default, [[2, 2]], True),
        (aten._unsafe_view.default, [[2, 2]], True),
        (aten.t.default, [], True),
        (aten.mul_.Tensor, [2], True),
        (aten.clone.default, [], False),
        (aten.add.Tensor, [1], False),
        (aten.sym_size.int, [0], False),
        (torch.ops.higher_order.cond, [], True),
        (print, [], True),
    ],
    ids=str,
)
def test_sharing_of_memory_follows_schemas_and_is_assumed_without_one(graph, target, arguments, shared):
    x = graph.placeholder("x")
    result = call(graph, target, x, *arguments)
    assert Aliases(graph).may_share(x, result) is shared


def test_a_copy_shares_with_where_it_goes_not_with_what_it_copies(graph):
    x, y = graph.placeholder("x"), graph.placeholder("y")
    copied = call(graph, aten.copy_.default, x, y)
    aliases = Aliases(graph)
    assert aliases.may_share(copied, x)
    assert not aliases.may_share(copied, y)


def test_views_of_views_are_one(graph):
    x = graph.placeholder("x")
    first = call(graph, aten.view.default, x, [2, 2])
    parts = call(graph, aten.split.Tensor, first, 1)
    part = call(graph, operator.getitem, parts, 0)
    aliases = Aliases(graph)
    assert aliases.of(x) == [x, first, parts, part]


def test_fresh_results_of_one_call_are_apart(graph):
    x = graph.placeholder("x")
    both = call(graph, ops.split_into.default, x, [x])
    one, two, again = (call(graph, operator.getitem, both, index) for index in (0, 1, 0))
    aliases = Aliases(graph)
    assert not aliases.may_share(one, two)
    assert not aliases.may_share(one, x)
    assert aliases.may_share(one, again)


def test_inputs_with_one_storage_share_it():
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.sin()

    module = traced(forward, torch.randn(4))
    x, sin = list(module.graph.nodes)[:2]
    assert not Aliases(module.graph).may_share(x, sin)
    sin.meta["val"] = x.meta["val"].view(2, 2)
    assert Aliases(module.graph).may_share(x, sin)


def test_the_same_attribute_read_twice_is_one(graph):
    first, second = graph.create_node("get_attr", "weight"), graph.create_node("get_attr", "weight")
    other = graph.create_node("get_attr", "bias")
    aliases = Aliases(graph)
    assert aliases.may_share(first, second)
    assert not aliases.may_share(first, other)


def test_what_is_written_follows_the_schema(graph):
    x, y, z = (graph.placeholder(name) for name in "xyz")
    assert written_inputs(call(graph, aten.copy_.default, x, y)) == [x]
    assert written_inputs(call(graph, aten.add.Tensor, x, y)) == []
    assert written_inputs(call(graph, ops.scale_into.default, x, out=y, k=2.0)) == [y]
    assert written_inputs(call(graph, ops.split_into.default, x, [y, z])) == [y, z]
    assert written_inputs(call(graph, torch.ops.higher_order.cond, x, y)) == [x, y]
    assert written_inputs(call(graph, operator.getitem, x, 0)) == []


def test_arguments_are_named_with_their_defaults(graph):
    x = graph.placeholder("x")
    node = call(graph, aten.slice.Tensor, x, 1, end=5)
    assert arguments_of(node) == {"self": x, "dim": 1, "start": None, "end": 5, "step": 1}


def test_sizes_are_no_contents(graph):
    x = graph.placeholder("x")
    assert reads_sizes_only(call(graph, aten.sym_size.int, x, 0))
    assert not reads_sizes_only(call(graph, aten.sum.default, x))


def test_arithmetic_on_sizes_is_removable_and_on_unknown_values_is_not(graph):
    x, y = graph.placeholder("x"), graph.placeholder("y")
    x.meta["val"] = 3
    assert is_removable(call(graph, operator.add, x, 1))
    assert is_removable(call(graph, torch.sym_max, x, 1))
    assert not is_removable(call(graph, operator.add, y, 1))
    assert not is_removable(call(graph, torch.manual_seed, x))
