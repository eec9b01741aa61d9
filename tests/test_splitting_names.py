"""The ways to name a place to cut, in every make of graph, and what is said where nothing has the name."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

import torch_piecewise as tp
from tests.graphs import HAS_FAKE_ENCODER_LAYER, traced
from torch_piecewise.cut_policy import CutPolicy
from torch_piecewise.errors import SplitError
from torch_piecewise.splitting import plan_split

pytestmark = pytest.mark.usefixtures("no_grad")


@torch.library.custom_op("names::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@tp.splitting_op("names::halve", fake=torch.empty_like)
def halve(x: Tensor) -> Tensor:
    return x / 2


class Scaled(torch.nn.Linear):
    """A class of one's own, derived from torch's."""


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.last = Scaled(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x * 3).relu()
        x = halve(torch.ops.names.twice(x) * 3) * 3
        x = torch.sigmoid(x).sum(-1, keepdim=True) * x
        return self.last(x @ x.t() @ x) * 3


def is_sigmoid(node: Node) -> bool:
    return "sigmoid" in str(node.target)


def by_dynamo(net: Net, x: Tensor) -> GraphModule:
    return traced(net, x)


def by_aot(net: Net, x: Tensor) -> GraphModule:
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, _inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(net, backend=aot_autograd(fw_compiler=keep), fullgraph=True)(x)
    return graphs[0]


def by_export(net: Net, x: Tensor) -> GraphModule:
    return torch.export.export(net, (x,)).module()  # type: ignore[return-value]


def by_make_fx(net: Net, x: Tensor) -> GraphModule:
    return make_fx(net)(x)


# Each entry, how many calls it names in Net, and whether a graph without any origins can still be cut there.
ENTRIES: dict[str, tuple[Any, int, bool]] = {
    "an op": ("names::twice", 1, True),
    "the overload of an op that is called by its packet": ("names::twice.default", 1, True),
    "an op of tp.splitting_op": ("names::halve", 1, True),
    "its overload": ("names::halve.default", 1, True),
    "an op by where it stands in Python": (f"{__name__}.halve", 1, True),
    "an op by where torch has it": ("torch.ops.names.twice", 1, True),
    "an op as an object": (torch.ops.aten.sigmoid.default, 1, True),
    "what tp.splitting_op made": (halve, 1, True),
    "what custom_op made": (twice, 1, True),
    "an ATen op": ("aten::sigmoid", 1, True),
    "an overload of an ATen op": ("aten::sum.dim_IntList", 1, True),
    "a torch function": ("torch.sigmoid", 1, True),
    "a torch function called as a method": ("torch.relu", 1, True),
    "a function of torch.nn.functional": ("torch.nn.functional.relu", 1, True),
    "a torch function called as an operator": ("torch.matmul", 1, False),
    "an ATen op called as an operator": ("aten::matmul", 1, False),
    "a torch function inside a module": ("torch.nn.functional.linear", 2, False),
    "a module class": (torch.nn.Linear, 2, False),
    "a module class by the name people use": ("torch.nn.Linear", 2, False),
    "a module class by the name it has": ("torch.nn.modules.linear.Linear", 2, False),
    "a class of one's own": (f"{__name__}.Scaled", 1, False),
    "a predicate": (is_sigmoid, 1, True),
}


@pytest.fixture(scope="module")
def graphs() -> dict[str, GraphModule]:
    """``Net`` as each maker of graphs writes it."""
    net, x = Net(), torch.randn(3, 4)
    with torch.no_grad():
        return {make.__name__: make(net, x) for make in (by_dynamo, by_aot, by_export, by_make_fx)}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("make", ["by_dynamo", "by_aot", "by_export", "by_make_fx"])
def test_every_way_to_name_a_cut_works_on_every_make_of_graph(
    graphs: dict[str, GraphModule], make: str, entry: str
) -> None:
    name, calls, without_origins = ENTRIES[entry]
    _module, items = tp.split_graph(graphs[make], [name])
    found = sum(item.is_splitting_graph for item in items)
    assert found == (calls if make != "by_make_fx" or without_origins else 0)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_way_to_name_a_cut_works_under_tp_compile(entry: str) -> None:
    name, calls, _without_origins = ENTRIES[entry]
    net, x = Net(), torch.randn(3, 4)
    expected = net(x)
    tp.compile(net, splitting_ops=[name], backend="eager", disable_cache=True)
    assert torch.equal(net(x), expected)
    assert tp.program_of(net).stats.cuts == calls


@pytest.mark.parametrize(
    "entry", ["the overload of an op that is called by its packet", "a module class by the name people use"]
)
def test_a_cut_named_so_works_under_torch_compile(entry: str) -> None:
    name, calls, _without_origins = ENTRIES[entry]
    net, x = Net(), torch.randn(3, 4)
    made: list[tp.PiecewiseCompileBackend] = []

    def backend(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        settings = tp.Config(backend="eager", splitting_ops=[name], disable_cache=True)
        made.append(tp.PiecewiseCompileBackend(settings))
        return made[0](graph, inputs)

    torch._dynamo.reset()
    assert torch.equal(torch.compile(net, backend=backend)(x), net(x))
    assert made[0].program is not None
    assert made[0].program.cuts == calls


def test_an_overload_is_told_by_its_arguments_where_a_graph_names_none() -> None:
    def sums(x: Tensor) -> Tensor:
        return (x * 2).sum() + x.sum(0)

    x = torch.randn(3, 4)
    for name in ("aten::sum.default", "aten::sum.dim_IntList"):
        _module, items = tp.split_graph(traced(sums, x), [name])
        (cut,) = [item for item in items if item.is_splitting_graph]
        (node,) = [node for node in cut.graph.graph.nodes if node.op == "call_method"]
        assert (len(node.args) == 1) == (name == "aten::sum.default")


def test_an_overload_that_cannot_be_told_is_cut_rather_than_compiled() -> None:
    graph = traced(lambda x: torch.sum(x * 2, axis=0), torch.randn(3, 4))
    assert sum(item.is_splitting_graph for item in tp.split_graph(graph, ["aten::sum.default"])[1]) == 1


def test_arithmetic_on_sizes_is_no_operation_on_tensors() -> None:
    def shaped(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] * 2, -1) + 1

    x = torch.randn(4, 6)
    torch._dynamo.mark_dynamic(x, 0)
    graph = traced(shaped, x)
    assert any(node.target is operator.mul for node in graph.graph.nodes)
    assert not any(item.is_splitting_graph for item in tp.split_graph(graph, ["torch.mul"])[1])


@pytest.mark.parametrize("entry", ["aten::sigmoid", "torch.cond"])
def test_an_operation_is_a_cut_when_something_in_its_own_graphs_is(entry: str) -> None:
    def chooses(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: torch.sigmoid(y) + 1, lambda y: y - 1, (x * 2,)) * 3

    x = torch.randn(3)
    graph = traced(chooses, x)
    expected = graph(x)
    module, items = tp.split_graph(graph, [entry])
    assert [item.is_splitting_graph for item in items] == [False, True, False]
    assert torch.equal(module(x)[0], expected[0])


@pytest.mark.parametrize("entry", ["torch.nn.Linear", torch.nn.Linear, "aten::linear"])
def test_modules_that_a_graph_calls_whole_are_cut_and_stay_in_their_pieces(entry: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(4, 4), torch.nn.Tanh())
    x = torch.randn(3, 4)
    module, items = tp.split_graph(torch.fx.symbolic_trace(net), [entry])
    assert [item.is_splitting_graph for item in items] == [False, True, False]
    assert torch.equal(module(x), net(x))


def test_modules_inside_blocks_that_are_traced_once_are_cut_in_each_call() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        @torch.compiler.nested_compile_region
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).relu()

    net = torch.nn.Sequential(Block(), Block(), Block())
    _module, items = tp.split_graph(traced(net, torch.randn(3, 4)), ["torch.nn.Linear"])
    assert [item.is_splitting_graph for item in items] == [True, False] * 3


# -- names that match nothing


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "math.pi",
            (
                "Splitting op 'math.pi' is nothing that a graph calls\n"
                "  expected: an operation, a torch function, or a subclass of torch.nn.Module\n"
                "  got: a float\n"
                "  to do: name the function or the module class that is called there"
            ),
        ),
        (
            "collections.OrderedDict",
            (
                "Splitting op 'collections.OrderedDict' is nothing that a graph calls\n"
                "  expected: an operation, a torch function, or a subclass of torch.nn.Module\n"
                "  got: a class that is no module class\n"
                "  to do: name the function or the module class that is called there"
            ),
        ),
        (
            "torch.nn.Liner",
            (
                "Splitting op 'torch.nn.Liner' does not exist\n"
                "  expected: a function or module class in torch.nn\n"
                "  got: no attribute 'Liner'\n"
                "  to do: did you mean Linear or LazyLinear or Bilinear?"
            ),
        ),
        (
            "names::twice.defult",
            (
                "Splitting op 'names::twice.defult' does not exist\n"
                "  expected: an overload that names::twice has: default\n"
                "  got: 'defult'\n"
                "  to do: did you mean default?"
            ),
        ),
        (
            "names::twice.other",
            (
                "Splitting op 'names::twice.other' does not exist\n"
                "  expected: an overload that names::twice has: default\n"
                "  got: 'other'\n"
                "  to do: name one of them, or names::twice for all"
            ),
        ),
    ],
)
def test_a_name_that_no_graph_can_hold_is_an_error(entry: str, message: str) -> None:
    with pytest.raises(SplitError) as caught:
        CutPolicy.of([entry])
    assert str(caught.value) == message


@pytest.mark.parametrize("graph", [torch.nn.ReLU(), torch.sin, None])
def test_something_that_is_no_graph_cannot_be_cut(graph: Any) -> None:
    with pytest.raises(SplitError) as caught:
        tp.split_graph(graph, [])
    assert str(caught.value) == (
        "There is no graph to cut\n"
        "  expected: a torch.fx.GraphModule: what Dynamo hands a backend, torch.export, or make_fx made\n"
        f"  got: {type(graph).__name__}\n"
        "  to do: trace the model first; tp.compile(model) does so"
    )


@pytest.mark.parametrize(("entries", "what"), [("aten::mm", "splitting_ops"), ([3], r"splitting_ops\[0\]")])
def test_entries_that_cannot_be_matched_are_refused_by_hand_too(entries: Any, what: str) -> None:
    with pytest.raises(SplitError, match=f"{what} has a value it cannot have"):
        tp.split_graph(traced(torch.sin, torch.randn(3)), entries)


def test_a_predicate_that_fails_is_named_with_the_node_it_failed_at() -> None:
    def breaks(node: Any) -> bool:
        return bool(node.nonsense)

    with pytest.raises(SplitError) as caught:
        tp.split_graph(traced(lambda x: torch.sin(x), torch.randn(3)), [breaks])
    text = str(caught.value)
    assert "breaks of splitting_ops failed at the node sin" in text
    assert "expected: a function (node) -> bool that takes every operation of the graph" in text
    assert "AttributeError" in text


def warning(function: Callable[..., Any], entry: Any) -> str:
    (text,) = plan_split(traced(function, torch.randn(3, 4)), CutPolicy.of([entry])).warnings
    return text


def plain_function(x: Tensor) -> Tensor:
    return torch.sin(x)


def test_a_name_that_never_occurs_is_told_with_what_the_graph_holds() -> None:
    assert warning(lambda x: torch.sin(x @ x.mT).softmax(-1), "torch.sinh") == (
        "splitting op 'torch.sinh' never occurs in the traced graph, so nothing is cut there; near names "
        "that do occur: torch.sin, torch.matmul; the graph holds builtins.getattr, torch.Tensor.softmax, "
        "torch.matmul, torch.sin"
    )


def test_a_python_function_that_traces_go_through_is_told_so() -> None:
    assert "a trace goes through Python functions: mark it with tp.ignore, or make it a tp.splitting_op" in (
        warning(lambda x: plain_function(x), f"{__name__}.plain_function")
    )


def test_an_operation_that_appears_only_below_torch_functions_is_told_so() -> None:
    assert "torch functions are taken apart into such operations after the cut: name the function" in (
        warning(lambda x: x @ x.t(), "aten::mm")
    )


def test_a_module_class_that_never_occurs_is_told_with_those_that_do() -> None:
    assert warning(torch.nn.Linear(4, 4), torch.nn.Conv1d) == (
        "splitting op 'torch.nn.modules.conv.Conv1d' never occurs in the traced graph, so nothing is cut "
        "there; near names that do occur: torch.nn.modules.linear.Linear; the graph holds "
        "torch.nn.modules.linear.Linear"
    )


def test_a_module_class_where_no_module_calls_another_is_told_so() -> None:
    assert warning(lambda x: torch.sin(x), torch.nn.Linear) == (
        "splitting op 'torch.nn.modules.linear.Linear' never occurs in the traced graph, so nothing is cut "
        "there; every operation is the compiled module's own, or of no module at all; "
        "the graph holds torch.sin"
    )


def test_a_module_class_in_a_graph_without_modules_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "torch_piecewise"):
        tp.split_graph(make_fx(Net())(torch.randn(3, 4)), ["torch.nn.Linear"])
    assert (
        "'torch.nn.Linear' cannot be found: this graph does not say which module its operations come from"
        in caplog.text
    )


def test_an_entry_that_another_stands_before_is_not_one_that_never_occurs() -> None:
    graph = traced(lambda x: torch.sigmoid(x) + 1, torch.randn(3))
    assert plan_split(graph, CutPolicy.of(["torch.sigmoid", "aten::sigmoid", is_sigmoid])).warnings == ()


@pytest.mark.skipif(
    not HAS_FAKE_ENCODER_LAYER, reason="this torch has no fake kernel for its fused encoder layer"
)
def test_the_fused_layer_of_an_encoder_is_cut_with_the_attention_in_it() -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    model = torch.nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        want = model(x)
        compiled = tp.compile(model, backend="eager", dynamic_arg_dims={"src": 0}, disable_cache=True)
        assert torch.equal(compiled(x), want)
    assert tp.program_of(model).stats.cuts > 0
