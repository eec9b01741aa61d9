"""What a node, a nested graph, a held object and a device mean for the identity of a piece."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import fx, nn

from torch_piecewise.errors import FingerprintError
from torch_piecewise.fingerprint import LabelStrings, describe, fingerprint
from torch_piecewise.piece import Piece, TensorSpec

Body = Callable[..., object]
"""Given a graph and its placeholders, adds nodes and returns what the graph returns."""


def graph_module(
    body: Body, count: int = 1, held: object = None, root: nn.Module | None = None
) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(body(graph, *[graph.placeholder(f"x{number}") for number in range(count)]))
    return fx.GraphModule({} if held is None and root is None else root or held, graph)


def piece(
    body: Body,
    *,
    count: int = 1,
    devices: tuple[str, ...] = (),
    held: object = None,
    root: nn.Module | None = None,
) -> Piece:
    places = devices or ("cpu",) * count
    inputs = tuple(TensorSpec(torch.float32, torch.device(place), (4,), (1,)) for place in places)
    return Piece("submod_3", 3, graph_module(body, len(places), held, root), inputs)


def call(target: object, *args: object, **kwargs: object) -> Body:
    """A body of one call on the first placeholder and ``args``."""
    return lambda graph, x, *_: (graph.call_function(target, (x, *args), kwargs),)


def method(name: str, *args: object, **kwargs: object) -> Body:
    return lambda graph, x, *_: (graph.call_method(name, (x, *args), kwargs),)


def held_body(*names: str) -> Body:
    return lambda graph, x: tuple(graph.get_attr(name) for name in names)


def same(one: Piece, other: Piece) -> bool:
    return fingerprint(one) == fingerprint(other)


# Arguments


def test_a_value_used_twice_is_not_two_equal_values() -> None:
    def twice(graph: fx.Graph, x: fx.Node) -> object:
        relu = graph.call_function(torch.relu, (x,))
        return (graph.call_function(torch.add, (relu, relu)),)

    def two(graph: fx.Graph, x: fx.Node) -> object:
        relus = [graph.call_function(torch.relu, (x,)) for _ in range(2)]
        return (graph.call_function(torch.add, tuple(relus)),)

    assert not same(piece(twice), piece(two))


def test_entering_and_leaving_modes_counts() -> None:
    bodies = [
        call(torch.relu),
        lambda graph, x: (graph.call_function(torch._C._set_grad_enabled, (False,)), x)[1:],
        lambda graph, x: (graph.call_function(torch._C._set_grad_enabled, (True,)), x)[1:],
        lambda graph, x: (graph.call_function(torch.amp.autocast_mode._enter_autocast, ("cpu", None)), x)[1:],
        lambda graph, x: (
            graph.call_function(torch.amp.autocast_mode._enter_autocast, ("cpu", torch.bfloat16)), x
        )[1:],
    ]  # fmt: skip
    assert len({fingerprint(piece(body)) for body in bodies}) == len(bodies)


def test_the_order_of_a_dict_argument_counts() -> None:
    one = piece(call(torch.relu, {"a": 1, "b": 2}))
    assert not same(one, piece(call(torch.relu, {"b": 2, "a": 1})))


def test_the_messages_of_traced_checks_do_not_count_and_a_users_do() -> None:
    def check(message: str, op: object = torch.ops.aten._assert_scalar.default) -> Piece:
        return piece(call(op, message))

    traced = "Runtime assertion failed for expression u{0} >= 0 on node 'ge_{0}'"
    assert same(check(traced.format(0)), check(traced.format(7)))
    assert not same(check("too small"), check("too large"))
    assert not same(check(traced.format(0), torch.relu), check(traced.format(7), torch.relu))


# Placement


def test_a_piece_is_the_same_on_any_device_of_a_kind() -> None:
    def on(one: str, other: str) -> Piece:
        return piece(call(torch.zeros, device=torch.device(other)), devices=(one, other))

    assert same(on("cuda:0", "cuda:1"), on("cuda:5", "cuda:2"))
    assert same(on("cuda:0", "cuda:0"), on("cuda:3", "cuda:3"))
    assert not same(on("cuda:0", "cuda:1"), on("cuda:0", "cuda:0"))
    assert not same(on("cuda:0", "cuda:0"), on("xpu:0", "xpu:0"))
    assert not same(on("cuda:0", "cuda:0"), on("cpu", "cpu"))
    assert not same(on("cuda:0", "cpu"), on("cuda:0", "cuda:0"))


@pytest.mark.parametrize(
    "body",
    [
        method("to", "cuda:0"),
        method("to", 0),
        method("to", torch.device("cuda")),
        method("to", device=0),
        method("cuda"),
        method("cuda", 0),
        call(torch.zeros, device="cuda"),
        call(torch.zeros, device=0),
        call(torch.cuda.current_device),
        call(torch.Tensor.to, 0),
    ],
)
def test_a_piece_that_names_a_device_in_its_own_way_stays_on_its_devices(body: Body) -> None:
    assert same(piece(body, devices=("cuda:0",)), piece(body, devices=("cuda:0",)))
    assert not same(piece(body, devices=("cuda:0",)), piece(body, devices=("cuda:1",)))
    assert describe(piece(body, devices=("cuda:1",))).endswith("\nplaced cuda#0=cuda:1\n")


@pytest.mark.parametrize(
    "body",
    [
        method("to", torch.float16),
        method("to", "cpu"),
        call(torch.nn.functional.interpolate, mode="nearest"),
        lambda graph, x: (graph.call_function(torch.amp.autocast_mode._enter_autocast, ("cuda", None)),),
    ],
)
def test_a_piece_that_names_no_device_is_not_tied(body: Body) -> None:
    assert same(piece(body, devices=("cuda:0",)), piece(body, devices=("cuda:1",)))


# Custom ops and labels

LIBRARY = "tp_fingerprint_test"


@pytest.fixture(scope="module")
def ops() -> Iterator[object]:
    library = torch.library.Library(LIBRARY, "DEF")
    library.define("attention(Tensor q, str layer, str mode='causal') -> Tensor")
    library.define("attention.out(Tensor q, str layer, *, Tensor(a!) out) -> ()")
    library.define("move(Tensor q, int device_index) -> Tensor")
    library.define("touch(Tensor(a!) q) -> ()")
    yield getattr(torch.ops, LIBRARY)
    library._destroy()


def labelled(ops: object, layer: str, mode: str = "causal", labels: LabelStrings = frozenset()) -> str:
    return fingerprint(piece(call(ops.attention.default, layer, mode=mode)), label_strings=labels)


def test_a_string_of_a_custom_op_counts_unless_it_is_declared_a_label(ops: object) -> None:
    assert labelled(ops, "layers.1") != labelled(ops, "layers.2")
    for labels in (
        frozenset({(f"{LIBRARY}::attention", "layer")}),
        frozenset({(f"{LIBRARY}::attention.default", "layer")}),
        lambda node, text: text.startswith("layers."),
    ):
        assert labelled(ops, "layers.1", labels=labels) == labelled(ops, "layers.2", labels=labels)
        assert labelled(ops, "layers.1", "full", labels) != labelled(ops, "layers.1", "causal", labels)
    other = frozenset({(f"{LIBRARY}::attention.out", "layer"), (f"{LIBRARY}::attention", "mode")})
    assert labelled(ops, "layers.1", labels=other) != labelled(ops, "layers.2", labels=other)


def test_a_label_of_a_packet_and_a_keyword_is_a_label_too(ops: object) -> None:
    labels = frozenset({(f"{LIBRARY}::attention", "layer")})

    def text(layer: str) -> str:
        def body(graph: fx.Graph, x: fx.Node) -> object:
            first = graph.call_function(ops.attention, (x, layer))
            return (graph.call_function(ops.attention.out, (first,), {"layer": layer, "out": x}),)

        return describe(piece(body), label_strings=labels)

    assert text("layers.1") == text("layers.2")
    assert "<label>" in text("layers.1")


def test_strings_of_torchs_own_ops_are_never_labels() -> None:
    def rounded(mode: str) -> str:
        target = torch.ops.aten.div.Tensor_mode
        labels: LabelStrings = lambda node, text: True  # noqa: E731
        return fingerprint(piece(call(target, 2, rounding_mode=mode)), label_strings=labels)

    assert rounded("floor") != rounded("trunc")


def test_a_device_number_given_to_a_custom_op_ties_the_piece_to_its_devices(ops: object) -> None:
    body = call(ops.move.default, 0)
    assert same(piece(body, devices=("cuda:0",)), piece(body, devices=("cuda:0",)))
    assert not same(piece(body, devices=("cuda:0",)), piece(body, devices=("cuda:1",)))


def test_the_schema_of_a_custom_op_counts(ops: object) -> None:
    assert "Tensor(a!) q" in describe(piece(call(ops.touch.default)))


# Nested graphs


def branch(constant: object, name: str = "x") -> fx.GraphModule:
    graph = fx.Graph()
    placeholder = graph.placeholder(name)
    graph.output((graph.call_function(torch.add, (placeholder, constant), name=f"{name}_sum"),))
    return fx.GraphModule({}, graph)


def conditional(
    then: fx.GraphModule, otherwise: fx.GraphModule, names: tuple[str, str] = ("t", "f")
) -> Piece:
    def body(graph: fx.Graph, x: fx.Node) -> object:
        branches = [graph.get_attr(name) for name in names]
        return (graph.call_function(torch.ops.higher_order.cond, (x, *branches, (x,))),)

    return piece(body, held=dict(zip(names, (then, otherwise), strict=True)))


def test_nested_graphs_count_by_structure_and_not_by_name() -> None:
    one = conditional(branch(1), branch(2))
    assert same(one, conditional(branch(1, "y"), branch(2, "z"), ("cond_true_7", "cond_false_7")))
    assert not same(one, conditional(branch(2), branch(1)))
    assert not same(one, conditional(branch(1), branch(2.0)))


def test_a_constant_held_by_a_nested_graph_counts() -> None:
    def nested(value: float) -> Piece:
        inner = graph_module(held_body("c"), held={"c": torch.tensor(value)})
        return conditional(inner, branch(1))

    assert same(nested(1.0), nested(1.0))
    assert not same(nested(1.0), nested(2.0))


# Held tensors and modules


def test_a_held_tensor_counts_by_content_and_not_by_name() -> None:
    one = piece(held_body("a"), held={"a": torch.ones(3)})
    assert same(one, piece(held_body("b"), held={"b": torch.ones(3)}))
    assert not same(one, piece(held_body("a"), held={"a": torch.zeros(3)}))
    assert not same(one, piece(held_body("a"), held={"a": nn.Parameter(torch.ones(3))}))


def test_whether_two_held_tensors_are_one_or_share_memory_counts() -> None:
    base = torch.ones(2, 3)
    pieces = [
        piece(held_body("a", "b"), held={"a": base, "b": base}),
        piece(held_body("a", "b"), held={"a": base, "b": base.clone()}),
        piece(held_body("a", "b"), held={"a": base, "b": base.view(2, 3)}),
    ]
    assert len({fingerprint(each) for each in pieces}) == 3
    assert same(pieces[0], piece(held_body("a", "a"), held={"a": base}))


class Scaled(nn.Module):
    def __init__(self, scale: object = 2.0) -> None:
        super().__init__()
        self.scale = scale
        self.inner = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
        nn.init.ones_(self.inner[0].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale


def calling(module: nn.Module, name: str = "m") -> Piece:
    root = nn.Module()
    root.add_module(name, module)
    return piece(lambda graph, x: (graph.call_module(name, (x,)),), root=root)


def test_a_called_module_counts_by_class_settings_and_tensors() -> None:
    changed = Scaled()
    changed.inner[0].weight.data[0, 0] = 5
    others = [
        Scaled(3.0),
        Scaled(2),
        Scaled().eval(),
        changed,
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.Linear(2, 2),
    ]
    assert same(calling(Scaled()), calling(Scaled(), "renamed"))
    assert len({fingerprint(calling(module)) for module in [Scaled(), *others]}) == len(others) + 1


def test_calling_one_module_twice_is_not_calling_two() -> None:
    def body(graph: fx.Graph, x: fx.Node) -> object:
        return (graph.call_module("a", (x,)), graph.call_module("b", (x,)))

    def of(one: nn.Module, other: nn.Module) -> Piece:
        root = nn.Module()
        root.a, root.b = one, other
        return piece(body, root=root)

    shared = nn.BatchNorm1d(4)
    assert not same(of(shared, shared), of(nn.BatchNorm1d(4), nn.BatchNorm1d(4)))


def test_a_module_with_hooks_is_refused() -> None:
    module = nn.ReLU()
    module.register_forward_hook(lambda *_: None)
    with pytest.raises(FingerprintError, match="hooks"):
        fingerprint(calling(module))


def test_a_module_with_an_unnamed_setting_is_refused() -> None:
    with pytest.raises(FingerprintError, match="lambda"):
        fingerprint(calling(Scaled(lambda x: x)))


# Triton kernels


class Launch:
    def __init__(self, table: object) -> None:
        self.table = table

    def __call__(self, made: object, block: int = 64) -> Piece:
        kwargs = {
            "kernel_idx": self.table.add_kernel(made),
            "constant_args_idx": self.table.add_constant_args({"BLOCK": block}),
            "grid": [(1, 1, 1)],
            "kwargs": {"x": 0},
        }
        return piece(
            lambda graph, x: (
                graph.call_function(torch.ops.higher_order.triton_kernel_wrapper_mutation, (), kwargs),
            )
        )


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Launch:
    wrap = pytest.importorskip("torch._higher_order_ops.triton_kernel_wrap")
    table = wrap.KernelSideTable()
    for name in ("id_to_kernel", "kernel_to_id", "constant_args"):
        monkeypatch.setattr(table, name, {})
    monkeypatch.setattr(wrap, "kernel_side_table", table)
    return Launch(table)


class Kernel(types.SimpleNamespace):
    """As much of a Triton kernel as its identity needs."""

    __hash__ = object.__hash__


def test_a_kernel_counts_by_what_stands_in_the_table_and_not_by_its_place(launch: Launch) -> None:
    kernels = [Kernel(cache_key=source, noinline=False) for source in ("a", "a", "b")]
    pieces = [launch(made) for made in kernels]
    assert [list(each.graph.graph.nodes)[1].kwargs["kernel_idx"] for each in pieces] == [0, 1, 2]
    assert same(pieces[0], pieces[1])
    assert not same(pieces[0], pieces[2])
    assert not same(pieces[0], launch(kernels[0], block=128))


def test_the_settings_of_an_autotuner_and_a_heuristic_count(launch: Launch) -> None:
    jit = Kernel(cache_key="a")

    def tuned(**config: object) -> object:
        return Kernel(fn=jit, configs=[types.SimpleNamespace(**config)], keys=["n"])

    variants = [
        jit,
        tuned(kwargs={"BLOCK": 64}, num_warps=4),
        tuned(kwargs={"BLOCK": 64}, num_warps=8),
        Kernel(fn=jit, values={"EVEN": lambda args: args["n"] % 2 == 0}),
        Kernel(fn=jit, values={"EVEN": lambda args: args["n"] % 4 == 0}),
    ]
    assert len({fingerprint(launch(variant)) for variant in variants}) == len(variants)


def test_a_kernel_that_the_process_does_not_know_is_refused(launch: Launch) -> None:
    made = launch(Kernel(cache_key="a"))
    launch.table.id_to_kernel.clear()
    with pytest.raises(FingerprintError, match="does not know"):
        fingerprint(made)


# Refusals


def local_function() -> object:
    def inner(x: object) -> object:
        return x

    return inner


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: piece(call(lambda x: x)), "lambda"),
        (lambda: piece(call(local_function())), "inside another function"),
        (lambda: piece(held_body("a"), held={"a": torch.ones(1).to_mkldnn()}), "layout"),
        (lambda: piece(call(torch.ops.higher_order.invoke_leaf_function, 0)), "table of this process"),
    ],
)
def test_a_refusal_names_piece_and_node_and_says_what_to_do(made: Callable[[], Piece], says: str) -> None:
    with pytest.raises(FingerprintError, match=says) as caught:
        fingerprint(made())
    assert str(caught.value).startswith("Piece submod_3: Node ")
    assert caught.value.hint


def test_a_graph_that_repacks_its_inputs_is_refused() -> None:
    class Packed(fx.CodeGen):
        pass

    made = piece(call(torch.relu))
    made.graph.graph.set_codegen(Packed())
    with pytest.raises(FingerprintError, match="repacks"):
        fingerprint(made)


def test_a_graph_out_of_order_is_refused() -> None:
    made = piece(lambda graph, x: (graph.call_function(torch.relu, (graph.call_function(torch.sin, (x,)),)),))
    _, sin, relu, _ = made.graph.graph.nodes
    sin.append(relu)
    relu.append(sin)
    with pytest.raises(FingerprintError, match="before, or without"):
        fingerprint(made)
