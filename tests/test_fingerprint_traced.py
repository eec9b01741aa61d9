"""Pieces of models that Dynamo traced: as many distinct ones as the model has, whatever its depth."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.split_module import split_module

from torch_piecewise.fingerprint import describe, fingerprint
from torch_piecewise.piece import InputSpec, IntSpec, Piece, Symbol, TensorSpec
from torch_piecewise.ranges import UNBOUNDED

NAMESPACE = "tp_fingerprint_traced"
HEADS, DIM = 2, 32


@pytest.fixture(scope="module")
def attention() -> Iterator[object]:
    library = torch.library.Library(NAMESPACE, "DEF")
    library.define("attention(Tensor q, Tensor k, Tensor v, Tensor(a!) out, str layer) -> ()")

    def body(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, layer: str) -> None:
        out.copy_(nn.functional.scaled_dot_product_attention(q, k, v))

    library.impl("attention", body, "CPU")
    library.impl("attention", lambda *_: None, "Meta")
    yield getattr(torch.ops, NAMESPACE).attention.default
    library._destroy()


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Block(nn.Module):
    def __init__(self, attention: Callable[..., None], name: str, act: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.attention, self.name, self.act = attention, name, act
        self.norm, self.norm2 = Norm(), Norm()
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(DIM, 2 * DIM, bias=False), nn.Linear(DIM, 2 * DIM, bias=False)
        self.down = nn.Linear(2 * DIM, DIM, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        q, k, v = (
            proj(normed).view(-1, HEADS, DIM // HEADS).transpose(0, 1) for proj in (self.q, self.k, self.v)
        )
        out = torch.empty_like(q)
        self.attention(q, k, v, out, self.name)
        x = x + self.o(out.transpose(0, 1).reshape(-1, DIM))
        normed = self.norm2(x)
        return x + self.down(self.act(self.gate(normed)) * self.up(normed))


class Model(nn.Module):
    def __init__(self, attention: Callable[..., None], layers: int, odd: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, DIM)
        acts = [torch.relu if number == odd else nn.functional.silu for number in range(layers)]
        self.layers = nn.ModuleList(
            Block(attention, f"model.layers.{number}.attn", act) for number, act in enumerate(acts)
        )
        self.norm, self.head = Norm(), nn.Linear(DIM, 50, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def traced(model: Callable[..., object], *inputs: object) -> fx.GraphModule:
    graphs: list[fx.GraphModule] = []

    def grab(graph: fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    torch.compile(model, backend=grab, fullgraph=True, dynamic=True)(*inputs)
    return graphs[0]


def dim(size: object) -> int | str:
    return size if isinstance(size, int) else str(size)


def spec_of(node: fx.Node) -> InputSpec:
    value = node.meta["example_value"]
    if not isinstance(value, torch.Tensor):
        return IntSpec(dim(value))
    size, stride = tuple(map(dim, value.size())), tuple(map(dim, value.stride()))
    return TensorSpec(value.dtype, value.device, size, stride, 0, value.requires_grad)


def piece_of(graph: fx.GraphModule, index: int = 0) -> Piece:
    inputs = tuple(spec_of(node) for node in graph.graph.find_nodes(op="placeholder"))
    sizes = [size for spec in inputs if isinstance(spec, TensorSpec) for size in spec.size]
    names = [size for size in sizes if isinstance(size, str) and size.isidentifier()]
    symbols = tuple(Symbol(name, 2, UNBOUNDED, 11) for name in dict.fromkeys(names))
    return Piece(f"submod_{index}", index, graph, inputs, symbols, (), names[0] if names else None)


def pieces_of(graph: fx.GraphModule) -> list[Piece]:
    """The graph cut by hand around each attention."""
    part, parts = 0, {}
    for node in graph.graph.nodes:
        cut = NAMESPACE in str(node.target)
        part += cut
        parts[node] = part
        part += cut
    split = split_module(graph, None, lambda node: parts[node], keep_original_order=True)
    names = [node.target for node in split.graph.nodes if node.op == "call_module"]
    modules = [split.get_submodule(name) for name in names]
    return [
        piece_of(module, index)
        for index, module in enumerate(modules)
        if not any(NAMESPACE in str(node.target) for node in module.graph.nodes)
    ]


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.arange(11)


@pytest.fixture(scope="module")
def four(attention: object, ids: torch.Tensor) -> list[Piece]:
    """The pieces of a model of four equal layers."""
    return pieces_of(traced(Model(attention, 4), ids))


def test_a_stack_of_equal_layers_has_three_distinct_pieces(four: list[Piece]) -> None:
    prints = [fingerprint(piece) for piece in four]
    assert len(prints) == 5
    assert prints[1] == prints[2] == prints[3]
    assert len(set(prints)) == 3
    assert describe(four[1]) == describe(four[3])


def test_a_layer_that_differs_in_one_function_is_a_piece_of_its_own(
    four: list[Piece], attention: object, ids: torch.Tensor
) -> None:
    odd = pieces_of(traced(Model(attention, 3, odd=1), ids))
    prints = [fingerprint(piece) for piece in odd]
    assert prints[0] == fingerprint(four[0])
    assert prints[1] == fingerprint(four[1])
    assert prints[2] != fingerprint(four[2])
    assert prints[3] == fingerprint(four[4])


def test_another_trace_of_another_depth_and_size_gives_the_same_pieces(
    four: list[Piece], attention: object, ids: torch.Tensor
) -> None:
    two = pieces_of(traced(Model(attention, 2), ids[:7]))
    assert [fingerprint(piece) for piece in two] == [fingerprint(four[place]) for place in (0, 1, 4)]


def test_thirty_three_pieces_take_a_moment(four: list[Piece]) -> None:
    pieces = [dataclasses.replace(four[1], index=index) for index in range(33)]
    fingerprint(four[1])
    start = time.process_time()
    for piece in pieces:
        fingerprint(piece)
    # 0.05 s on an idle machine; the bound is for busy ones.
    assert time.process_time() - start < 0.5


def test_sizes_inside_a_graph_are_named_like_those_of_its_inputs() -> None:
    graph = traced(lambda x: x.sin(), torch.ones(7))
    size = next(iter(graph.graph.find_nodes(op="placeholder"))).meta["example_value"]
    assert isinstance(size, torch.SymInt)
    _, x, sin, _ = graph.graph.nodes
    sin.args = (x, 2 * size + 1)
    assert "(%1, symbolic 2*d0 + 1)" in describe(piece_of(graph))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(_ctx: object, grad: torch.Tensor) -> torch.Tensor:
        return grad * 3


class DoubledOtherwise(Doubled):
    @staticmethod
    def backward(_ctx: object, grad: torch.Tensor) -> torch.Tensor:
        return grad * 4


def branching(x: torch.Tensor, by: float = 1.0) -> torch.Tensor:
    return torch.cond(x.sum() > 0, lambda x: x + by, lambda x: x - 1, (x,))


def with_modes(x: torch.Tensor, by: float = 1.0) -> object:
    torch._check(x.size(0) > 2)
    with torch.no_grad():
        y = nn.functional.max_pool2d(x[None, None] * by, 1)
    with torch.autocast("cpu", torch.bfloat16):
        return y, x @ x.t(), x.view(x.size(0) * 8)


VARIANTS = {
    "autograd function": (lambda x: Doubled.apply(x), lambda x: DoubledOtherwise.apply(x)),
    "cond": (branching, lambda x: branching(x, 2.0)),
    "modes and checks": (with_modes, lambda x: with_modes(x, 2.0)),
    "checkpoint": (
        lambda x: torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False),
        lambda x: torch.utils.checkpoint.checkpoint(torch.cos, x, use_reentrant=False),
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_with_higher_order_ops_have_a_fingerprint_that_tells_them_apart(variant: str) -> None:
    one, other = VARIANTS[variant]
    x = torch.randn(4, 8, requires_grad=variant in ("autograd function", "checkpoint"))
    prints = [fingerprint(piece_of(traced(function, x))) for function in (one, one, other)]
    assert prints[0] == prints[1] != prints[2]


def test_an_aten_graph_has_a_fingerprint() -> None:
    def aten(by: float) -> str:
        graph = fx.experimental.proxy_tensor.make_fx(lambda x: (x.relu() * by,))(torch.ones(3))
        spec = TensorSpec(torch.float32, torch.device("cpu"), (3,), (1,))
        return fingerprint(Piece("submod_0", 0, graph, (spec,)))

    assert aten(2.0) == aten(2.0) != aten(3.0)
