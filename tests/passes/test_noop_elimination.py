from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from torch_piecewise.passes.cleanup import CleanUp
from torch_piecewise.passes.noop_elimination import NoopElimination

from .graphs import lines, text_of, traced

END = sys.maxsize


def named(cases: list[tuple[str, object]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("function", [case for _, case in cases], ids=[name for name, _ in cases])


def x(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (8, 4)))


def reduced(module: fx.GraphModule) -> str:
    """The graph after the pass and the clean-up that always follows it."""
    NoopElimination()(module.graph)
    CleanUp()(module.graph)
    module.graph.lint()
    return text_of(module)


GONE = """
    x_1 = placeholder
    sin = aten.sin.default(x_1)
    cos = aten.cos.default(sin)
    return cos
"""


@named(
    [
        ("view to its own shape", lambda y: torch.ops.aten.view.default(y, y.shape)),
        ("view with one size left open", lambda y: torch.ops.aten.view.default(y, [-1, y.shape[1]])),
        ("reshape to its own shape", lambda y: torch.ops.aten.reshape.default(y, list(y.shape))),
        ("unsafe view to its own shape", lambda y: torch.ops.aten._unsafe_view.default(y, y.shape)),
        ("expand that keeps all sizes", lambda y: y.expand(-1, -1)),
        ("expand to the sizes there are", lambda y: y.expand(y.shape[0], y.shape[1])),
        ("slice with an open end", lambda y: torch.ops.aten.slice.Tensor(y, 0, 0, END)),
        ("slice up to the size", lambda y: torch.ops.aten.slice.Tensor(y, 0, 0, y.shape[0])),
        ("slice beyond the size", lambda y: torch.ops.aten.slice.Tensor(y, 0, 0, y.shape[0] + 3)),
        ("slice of the last dim", lambda y: torch.ops.aten.slice.Tensor(y, -1, None, None)),
        ("two of them", lambda y: torch.ops.aten.slice.Tensor(y, 0, 0, END).expand(-1, -1)),
    ],
)
def test_gone_is(function):
    module = traced(lambda x: function(x.sin()).cos(), x())
    assert len(module.graph.nodes) > 4
    assert reduced(module) == lines(GONE)


@named(
    [
        ("transposing view", lambda y: torch.ops.aten.view.default(y, [y.shape[1], y.shape[0]])),
        ("flattening view", lambda y: torch.ops.aten.view.default(y, [-1])),
        ("view that adds a dim", lambda y: torch.ops.aten.view.default(y, [1, *y.shape])),
        ("expand that repeats", lambda y: torch.ops.aten.slice.Tensor(y, 1, 0, 1).expand(-1, 4)),
        ("expand that adds a dim", lambda y: y.expand(2, -1, -1)),
        ("slice from the second", lambda y: torch.ops.aten.slice.Tensor(y, 0, 1, END)),
        ("slice to the last but one", lambda y: torch.ops.aten.slice.Tensor(y, 0, 0, -1)),
        ("slice in steps of two", lambda y: torch.ops.aten.slice.Tensor(y, 0, 0, END, 2)),
        ("slice up to a number", lambda y: torch.ops.aten.slice.Tensor(y, 0, 0, 8)),
    ],
)
def test_kept_is(function):
    module = traced(lambda x: function(x.sin()).cos(), x())
    CleanUp()(module.graph)
    before = text_of(module)
    assert reduced(module) == before


def test_sizes_with_equal_values_but_different_symbols_are_not_taken_for_equal():
    # Plain tracing gives equal sizes one symbol; with duck_shape off each has its own.
    shapes = ShapeEnv(duck_shape=False)
    fake = FakeTensorMode(shape_env=shapes).from_tensor(x(8, 8))
    graph = fx.Graph()
    source = graph.placeholder("x")
    source.meta["val"] = fake
    sizes = []
    for dim in (1, 0):
        size = graph.call_function(torch.ops.aten.sym_size.int, (source, dim))
        size.meta["val"] = fake.shape[dim]
        sizes.append(size)
    view = graph.call_function(torch.ops.aten.view.default, (source, sizes))
    cut = graph.call_function(torch.ops.aten.slice.Tensor, (view, 0, 0, sizes[0]))
    view.meta["val"] = cut.meta["val"] = fake
    graph.output(graph.call_function(torch.ops.aten.cos.default, (cut,)))
    before = text_of(graph)
    assert NoopElimination()(graph) == 0
    assert text_of(graph) == before
    assert not shapes.guards
    assert not shapes.replacements


def test_no_guard_is_added():
    def forward(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        y = x.sin()[: n.shape[0]]
        y = y.view(n.shape[0], x.shape[1]).expand(n.shape[0], -1)[:5]
        return y.cos() + x.cos().view(x.shape[1], x.shape[0]).sum()

    module = traced(forward, x(9, 4), x(7))
    shapes = next(iter(module.graph.nodes)).meta["val"].fake_mode.shape_env
    before = (list(shapes.guards), dict(shapes.replacements), dict(shapes.var_to_range))
    assert NoopElimination()(module.graph) > 0
    assert (list(shapes.guards), dict(shapes.replacements), dict(shapes.var_to_range)) == before


def test_a_scatter_over_everything_becomes_what_it_writes():
    module = traced(lambda x, y: torch.slice_scatter(x.sin(), y.cos(), 0, 0, END) + 1, x(), x())
    assert text_of(module) == lines("""
        x_1 = placeholder
        y_1 = placeholder
        sin = aten.sin.default(x_1)
        cos = aten.cos.default(y_1)
        slice_scatter = aten.slice_scatter.default(sin, cos, 0, 0, 9223372036854775807)
        add = aten.add.Tensor(slice_scatter, 1)
        return add
    """)
    assert reduced(module) == lines("""
        x_1 = placeholder
        y_1 = placeholder
        cos = aten.cos.default(y_1)
        add = aten.add.Tensor(cos, 1)
        return add
    """)


@named(
    [
        ("over a part", lambda x, y: torch.slice_scatter(x.sin(), y[1:], 0, 1, END) + 1),
        ("of another type", lambda x, y: torch.slice_scatter(x.sin(), y.double(), 0, 0, END) + 1),
        ("of another layout", lambda x, y: torch.slice_scatter(x[:4].sin(), y[:4].t().sin(), 0, 0, END) + 1),
        ("of an input that is the output", lambda x, y: torch.slice_scatter(x.sin(), y, 0, 0, END)),
        ("twice, both outputs", lambda x, y: (torch.slice_scatter(x, z := y + 1, 0, 0, END), z)),
        ("that is written to later", lambda x, y: torch.slice_scatter(x, z := y + 1, 0, 0, END).add_(1) * z),
    ],
)
def test_a_scatter_is_kept(function):
    module = traced(function, x(8, 4), x(8, 4))
    assert "slice_scatter" in reduced(module)


def test_two_scatters_of_one_tensor_do_not_become_one_output():
    def forward(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = y + 1
        return torch.slice_scatter(x, z, 0, 0, END), torch.slice_scatter(x + 1, z, 0, 0, END)

    module = traced(forward, x(), x())
    assert reduced(module).count("slice_scatter.default") == 1


def test_an_output_does_not_become_an_input():
    module = traced(lambda x: x.view(x.shape), x())
    before = text_of(module)
    NoopElimination()(module.graph)
    assert text_of(module) == before


def test_two_outputs_do_not_become_one():
    module = traced(lambda x: (y := x.sin(), y.view(y.shape)), x())
    assert "view" in reduced(module)


def test_an_output_may_become_another_value_of_the_graph():
    module = traced(lambda x: (x.sin().view(x.shape),), x())
    assert reduced(module) == lines("""
        x_1 = placeholder
        sin = aten.sin.default(x_1)
        return (sin,)
    """)


def test_the_number_of_matches_is_what_was_removed():
    module = traced(lambda x: torch.ops.aten.slice.Tensor(x.sin().expand(-1, -1), 0, 0, END).cos(), x())
    assert NoopElimination()(module.graph) == 2


def test_a_node_without_metadata_is_left_alone():
    graph = fx.Graph()
    source = graph.placeholder("x")
    view = graph.call_function(torch.ops.aten.view.default, (source, [4]))
    graph.output(graph.call_function(torch.ops.aten.sin.default, (view,)))
    assert NoopElimination()(graph) == 0


STEPS = {
    "same": lambda y: y.view(y.shape),
    "open": lambda y: y[0:END],
    "first": lambda y: y[:3],
    "rest": lambda y: y[1:],
    "scatter": lambda y: torch.slice_scatter(y, y + 1, 0, 0, END),
    "part": lambda y: torch.slice_scatter(y, y[:2] + 1, 0, 0, 2),
    "expand": lambda y: y.expand(-1, -1),
    "sin": torch.sin,
    "turn": lambda y: y.t().contiguous().view(-1, y.shape[0]).t(),
    "write": lambda y: y.clone().mul_(2),
}


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=8))
def test_any_program_computes_the_same_afterwards(steps):
    def forward(x: torch.Tensor) -> list[torch.Tensor]:
        seen = []
        for step in steps:
            x = STEPS[step](x)
            seen.append(x)
        return [seen[0], seen[-1]]

    given_x = x(12, 4)
    module = traced(forward, given_x)
    before = fx.Interpreter(module).run(given_x.clone())
    reduced(module)
    after = fx.Interpreter(module).run(given_x.clone())
    assert all(map(torch.equal, before, after))
