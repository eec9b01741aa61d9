from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

import torch_piecewise as tp
from tests.graphs import traced
from torch_piecewise.cut_policy import CutPolicy
from torch_piecewise.errors import SplitError
from torch_piecewise.splitting import plan_split, split_graph


def kinds(items: list[tp.SplitItem]) -> str:
    """The pieces as one letter each: c for a cut, p for a piece to compile."""
    return "".join("c" if item.is_splitting_graph else "p" for item in items)


def ops(item: tp.SplitItem) -> list[str]:
    return [
        getattr(node.target, "__name__", str(node.target))
        for node in item.graph.graph.nodes
        if node.op not in ("placeholder", "output")
    ]


def same_result(graph: GraphModule, splitting_ops: Any, *inputs: Any) -> list[tp.SplitItem]:
    """Cut ``graph``, compare with running it whole, return the pieces."""
    expected = graph(*[x.clone() if isinstance(x, Tensor) else x for x in inputs])
    module, items = split_graph(graph, splitting_ops)
    got = module(*[x.clone() if isinstance(x, Tensor) else x for x in inputs])
    for want, have in zip(expected, got, strict=True):
        assert torch.equal(want, have)
    return items


def test_each_cut_is_a_piece_of_its_own_and_names_follow_ids() -> None:
    graph = traced(lambda x: (x.relu().sigmoid() + 1).sigmoid() * 2, torch.randn(3))
    items = same_result(graph, ["aten::sigmoid"], torch.randn(3))
    assert kinds(items) == "pcpcp"
    assert [item.submod_name for item in items] == [f"submod_{n}" for n in range(5)]
    assert [item.graph_id for item in items] == list(range(5))


def test_ids_are_sorted_as_numbers_not_as_text() -> None:
    def many(x: Tensor) -> Tensor:
        for _ in range(7):
            x = x.sigmoid() + 1
        return x

    items = same_result(traced(many, torch.randn(3)), ["aten::sigmoid"], torch.randn(3))
    assert [item.graph_id for item in items] == list(range(14))


def test_directly_consecutive_cuts_share_a_piece() -> None:
    graph = traced(lambda x: (x + 1).sigmoid().sigmoid() + 1, torch.randn(3))
    items = same_result(graph, ["aten::sigmoid"], torch.randn(3))
    assert kinds(items) == "pcp"
    assert ops(items[1]) == ["sigmoid", "sigmoid"]


def test_no_splitting_op_means_one_piece() -> None:
    graph = traced(lambda x: x.sigmoid() + 1, torch.randn(3))
    assert kinds(same_result(graph, [], torch.randn(3))) == "p"


def test_none_means_the_attention_ops_torch_knows() -> None:
    def attends(x: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x + 1, x, x) + 1

    x = torch.randn(1, 2, 3, 4)
    assert kinds(same_result(traced(attends, x), None, x)) == "pcp"
    assert kinds(split_graph(make_fx(attends)(x), None)[1]) == "pcp"


@pytest.mark.parametrize(
    "entry",
    [
        "aten::sigmoid",
        "torch.sigmoid",
        pytest.param(lambda node: node.target is torch.sigmoid, id="predicate"),
    ],
)
def test_a_cut_can_be_named_by_op_function_or_predicate(entry: Any) -> None:
    graph = traced(lambda x: torch.sigmoid(x + 1) + 1, torch.randn(3))
    assert kinds(same_result(graph, [entry], torch.randn(3))) == "pcp"


def test_an_overload_name_matches_that_overload_only() -> None:
    x = torch.randn(3, 3)
    graph = make_fx(lambda x: (x + 1).sum().add(1))(x)
    assert kinds(split_graph(graph, ["aten::sum.dim_IntList"])[1]) == "p"
    graph = make_fx(lambda x: (x + 1).sum().add(1))(x)
    assert kinds(split_graph(graph, ["aten::sum.default"])[1]) == "pcp"


class Inner(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() * 2


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Inner()
        self.second = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x + 1) + 1) + 1


@pytest.mark.parametrize("entry", [Inner, "tests.test_splitting.Inner"])
def test_every_call_of_a_module_class_is_one_cut(entry: Any) -> None:
    items = same_result(traced(Outer(), torch.randn(3)), [entry], torch.randn(3))
    assert kinds(items) == "pcpcp"
    assert ops(items[1]) == ["relu", "mul"]


def test_getitem_stays_with_its_producer_so_no_tuple_crosses_a_cut() -> None:
    def topk(x: Tensor) -> Tensor:
        values, indices = x.relu().max(0)
        cut = values.sigmoid()
        return cut + indices

    items = same_result(traced(topk, torch.randn(3, 3)), ["aten::sigmoid"], torch.randn(3, 3))
    assert kinds(items) == "pcp"
    assert ops(items[0]) == ["relu", "max", "getitem", "getitem"]


def test_getitem_of_a_cut_with_several_results_stays_in_the_cut() -> None:
    def unbound(x: Tensor) -> Tensor:
        values, indices = torch.max(x + 1, 0)
        return values * 2 + indices

    items = same_result(traced(unbound, torch.randn(3, 3)), ["torch.max"], torch.randn(3, 3))
    assert kinds(items) == "pcp"
    assert ops(items[1]) == ["max", "getitem", "getitem"]


def test_mutation_stays_in_order_across_cuts() -> None:
    def mutates(x: Tensor) -> Tensor:
        y = x + 1
        z = y.sigmoid()
        y.add_(z)
        w = y.sigmoid()
        return y * w

    items = same_result(traced(mutates, torch.randn(3)), ["aten::sigmoid"], torch.randn(3))
    assert kinds(items) == "pcpcp"


def test_a_piece_that_only_allocates_joins_the_one_before() -> None:
    def allocates(x: Tensor) -> Tensor:
        first = torch.sigmoid(x + 1)
        out = torch.empty_like(first)
        second = torch.sigmoid(first)
        out.copy_(second)
        return out * 1

    items = same_result(traced(allocates, torch.randn(3)), ["aten::sigmoid"], torch.randn(3))
    assert kinds(items) == "pccp"
    assert ops(items[1]) == ["sigmoid", "empty_like"]


def test_a_first_piece_that_only_allocates_stays() -> None:
    def allocates(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        return torch.sigmoid(x, out=out) + 1

    items = same_result(traced(allocates, torch.randn(3)), ["torch.sigmoid"], torch.randn(3))
    assert kinds(items) == "pcp"


def size_tuple_graph() -> GraphModule:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_method("size", (x,))
    cut = graph.call_function(torch.sigmoid, (x,))
    view = graph.call_method("view", (cut, size))
    graph.output((graph.call_function(torch.add, (view, 1)),))
    return GraphModule(torch.nn.Module(), graph)


def test_a_size_tuple_that_would_cross_becomes_one_value_per_dim() -> None:
    graph = size_tuple_graph()
    fake = traced_fake(2, 3)
    next(iter(graph.graph.nodes)).meta["example_value"] = fake
    items = same_result(graph, ["torch.sigmoid"], torch.randn(2, 3))
    assert all("size" not in ops(item) for item in items)


def test_a_dynamic_dim_of_a_size_tuple_becomes_sym_size() -> None:
    graph = size_tuple_graph()
    fake = traced_fake(2, 3, dynamic=True)
    next(iter(graph.graph.nodes)).meta["example_value"] = fake
    module, items = split_graph(graph, ["torch.sigmoid"])
    assert "sym_size" in str(ops(items[0]))
    x = torch.randn(5, 3)
    assert torch.equal(module(x)[0], torch.sigmoid(x) + 1)


def traced_fake(*sizes: int, dynamic: bool = False) -> Any:
    x = torch.randn(*sizes)
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    graph = traced(lambda x: x + 1, x)
    return next(n for n in graph.graph.nodes if n.name == "l_x_").meta["example_value"]


def test_size_of_one_dim_is_left_alone() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_method("size", (x, 0))
    cut = graph.call_function(torch.sigmoid, (x,))
    graph.output((graph.call_function(torch.mul, (cut, size)),))
    items = same_result(GraphModule(torch.nn.Module(), graph), ["torch.sigmoid"], torch.randn(2, 3))
    assert "size" in ops(items[0])


def test_nested_regions_are_inlined_before_cutting() -> None:
    block = torch.compiler.nested_compile_region(lambda x: x.sigmoid() + 1)
    graph = traced(lambda x: block(block(x * 2)), torch.randn(3))
    items = same_result(graph, ["aten::sigmoid"], torch.randn(3))
    assert kinds(items) == "pcpcp"


def test_submodule_calls_inside_nested_regions_are_inlined() -> None:
    inner = torch.fx.symbolic_trace(Inner())
    root = torch.nn.Module()
    root.add_module("inner", inner)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_module("inner", (graph.call_module("inner", (x,)),)),))
    items = same_result(GraphModule(root, graph), ["torch.Tensor.relu"], torch.randn(3))
    assert kinds(items) == "cpcp"


def test_a_constant_of_the_graph_reaches_every_piece_that_uses_it() -> None:
    graph = make_fx(lambda x: (x + torch.tensor([1.0, 2.0])).sigmoid() * torch.tensor([3.0, 4.0]))(
        torch.randn(2)
    )
    assert kinds(same_result_single(graph, ["aten::sigmoid"], torch.randn(2))) == "pcp"


def same_result_single(graph: GraphModule, splitting_ops: Any, x: Tensor) -> list[tp.SplitItem]:
    expected = graph(x)
    module, items = split_graph(graph, splitting_ops)
    assert torch.equal(expected, module(x))
    return items


def test_pieces_return_tuples() -> None:
    graph = traced(lambda x: x.sigmoid() + 1, torch.randn(3))
    _module, items = split_graph(graph, ["aten::sigmoid"])
    for item in items:
        output = next(iter(reversed(item.graph.graph.nodes)))
        assert isinstance(output.args[0], tuple)


def test_an_autocast_region_around_a_cut_is_reentered_on_both_sides() -> None:
    def regions(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = x @ x
            y = torch.sigmoid(y)
            z = y.float() @ x
        return z.float() @ x

    x = torch.randn(4, 4)
    items = same_result(traced(regions, x), ["torch.sigmoid"], x)
    assert kinds(items) == "pcp"
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "aten::sigmoidd",
            "Splitting op 'aten::sigmoidd' does not exist\n.*\n.*no 'sigmoidd'\n.*did you mean sigmoid",
        ),
        ("nowhere::op", "Splitting op 'nowhere::op' does not exist"),
        ("torch.nn.functional.scaled_attention", "no attribute 'scaled_attention'"),
        ("sigmoid", "an operation's name has its namespace in it"),
    ],
)
def test_a_splitting_op_that_does_not_exist_is_an_error(entry: str, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        CutPolicy.of([entry])


def test_a_splitting_op_that_never_occurs_is_a_warning_with_near_names() -> None:
    graph = traced(lambda x: torch.sigmoid(x) + 1, torch.randn(3))
    plan = plan_split(graph, CutPolicy.of(["aten::hardsigmoid"]))
    (warning,) = plan.warnings
    assert warning == (
        "splitting op 'aten::hardsigmoid' never occurs in the traced graph, so nothing is cut there; "
        "near names that do occur: torch.sigmoid; torch functions are taken apart into such operations after "
        "the cut: name the function; the graph holds torch.add, torch.sigmoid"
    )


def test_the_compiled_model_logs_that_warning(caplog: pytest.LogCaptureFixture, no_grad: None) -> None:
    compiled = tp.compile(
        lambda_free, dynamic_arg_dims={"x": 0}, backend="eager", splitting_ops=["aten::tanh"]
    )
    with caplog.at_level(logging.WARNING, "torch_piecewise"):
        compiled(torch.randn(3))
    assert "'aten::tanh' never occurs" in caplog.text


def lambda_free(x: Tensor) -> Tensor:
    return x.sigmoid() + 1


class Rows(torch.nn.Module):
    """Layers that all ask how many rows there are, an expression over two sizes."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = x.sin()
            rows = x.shape[0] * x.shape[1]
            order = torch.arange(2 * rows)[:rows]
            x = x.cos()
            x = (x.reshape(rows, -1) + order.unsqueeze(1)).view_as(x).sigmoid()
        return x


@pytest.mark.usefixtures("no_grad")
def test_an_expression_over_sizes_is_computed_where_it_is_needed_so_that_layers_stay_alike() -> None:
    model = tp.compile(
        Rows(),
        backend="eager",
        disable_cache=True,
        splitting_ops=["aten::sigmoid"],
        dynamic_arg_dims={"x": {0: "batch", 1: "length"}},
    )
    for shape in ((2, 5, 3), (3, 1, 3), (1, 4, 3)):
        x = torch.randn(shape)
        assert torch.equal(model(x), Rows()(x))
    stats = tp.program_of(model).stats
    assert (stats.traces, stats.pieces, stats.distinct_pieces) == (1, 4, 1)


def test_an_expression_over_sizes_that_a_cut_takes_is_an_input_of_the_cut() -> None:
    def repeats(x: Tensor, n: int) -> Tensor:
        twice = n * 2
        return (x + twice).sigmoid().repeat_interleave(twice, 0) + twice

    graph = torch.fx.symbolic_trace(repeats)
    for node in graph.graph.nodes:
        node.meta["example_value"] = {"n": 3, "mul": 6}.get(node.name, torch.empty(2, 2))
    module, items = split_graph(graph, [lambda node: node.target == "repeat_interleave"])
    assert kinds(items) == "pcp"
    assert [ops(item) for item in items] == [["mul", "add", "sigmoid"], ["repeat_interleave"], ["mul", "add"]]
    x = torch.randn(2, 2)
    assert torch.equal(module(x, 3), repeats(x, 3))
