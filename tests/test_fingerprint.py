"""Two pieces have one fingerprint exactly when one artifact can serve both.

A :class:`Recipe` is a piece as plain data, in which everything matters; :class:`Naming` holds all that
must not matter when a recipe becomes a :class:`Piece`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import fx

from torch_piecewise.errors import FingerprintError
from torch_piecewise.fingerprint import describe, fingerprint
from torch_piecewise.piece import ConstantSpec, InputSpec, IntSpec, Piece, Symbol, TensorSpec

SYMBOLS = ("a", "b", "c")


@dataclass(frozen=True)
class Ref:
    """An earlier value: the number of an input or, counted on, of a step."""

    number: int


@dataclass(frozen=True)
class Step:
    kind: str
    target: object
    args: tuple[object, ...]
    kwargs: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Recipe:
    inputs: tuple[InputSpec, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Ref, ...]
    symbols: tuple[Symbol, ...]
    relations: tuple[str, ...]
    dispatch: str | None


@dataclass(frozen=True)
class Naming:
    prefix: str = "x"
    piece: str = "submod_0"
    index: int = 0
    symbols: tuple[str, ...] = ("s0", "s1", "s2")
    hint: int = 5
    cuda: int = 0
    reverse_kwargs: bool = False
    trace: str = ""


def build(recipe: Recipe, naming: Naming) -> Piece:
    graph = fx.Graph()
    values = [graph.placeholder(f"{naming.prefix}_{number}") for number in range(len(recipe.inputs))]
    for number, step in enumerate(recipe.steps):
        args, kwargs = placed((step.args, dict(step.kwargs)), values, naming)
        if naming.reverse_kwargs:
            kwargs = dict(reversed(kwargs.items()))
        target = f"{naming.prefix}_held_{step.target}" if step.kind == "get_attr" else step.target
        node = graph.create_node(step.kind, target, args, kwargs, f"{naming.prefix}_step_{number}")
        node.meta = {"stack_trace": naming.trace, "nn_module_stack": {naming.trace: naming.index}}
        values.append(node)
    graph.output(tuple(values[ref.number] for ref in recipe.outputs))
    held = {f"{naming.prefix}_held_{name}": tensor for name, tensor in HELD.items()}
    symbols = tuple(
        dataclasses.replace(symbol, name=renamed(symbol.name, naming), hint=naming.hint)
        for symbol in recipe.symbols
    )
    return Piece(
        name=naming.piece,
        index=naming.index,
        graph=fx.GraphModule(held, graph),
        inputs=tuple(described(spec, naming) for spec in recipe.inputs),
        symbols=symbols,
        relations=tuple(renamed(relation, naming) for relation in recipe.relations),
        dispatch=None if recipe.dispatch is None else renamed(recipe.dispatch, naming),
    )


HELD = {"one": torch.ones(2), "two": torch.tensor([1.0, 2.0]), "three": torch.tensor([1, 2])}


def placed(value: object, values: list[fx.Node], naming: Naming) -> object:
    if isinstance(value, Ref):
        return values[value.number]
    if isinstance(value, tuple | list):
        return type(value)(placed(item, values, naming) for item in value)
    if isinstance(value, dict):
        return {key: placed(item, values, naming) for key, item in value.items()}
    return moved(value, naming) if isinstance(value, torch.device) else value


def moved(device: torch.device, naming: Naming) -> torch.device:
    return torch.device("cuda", (device.index + naming.cuda) % 8) if device.type == "cuda" else device


def renamed(text: object, naming: Naming) -> object:
    """``text`` with ``{a}``, ``{b}`` and ``{c}`` filled in."""
    if not isinstance(text, str):
        return text
    return text.format(**dict(zip(SYMBOLS, naming.symbols, strict=True)))


def described(spec: InputSpec, naming: Naming) -> InputSpec:
    if isinstance(spec, TensorSpec):
        return dataclasses.replace(
            spec,
            device=moved(spec.device, naming),
            size=tuple(renamed(dim, naming) for dim in spec.size),
            stride=tuple(renamed(dim, naming) for dim in spec.stride),
            storage_offset=renamed(spec.storage_offset, naming),
        )
    return IntSpec(renamed(spec.value, naming)) if isinstance(spec, IntSpec) else spec


DIMS = st.sampled_from(
    [1, 2, 8, "{a}", "{b}", "{c}", "2*{a}", "2*{a} + 1", "{a}*{b}", "{a}//2", "Max(1, {b})"]
)
DEVICES = st.sampled_from([torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64])
TENSORS = st.builds(
    lambda dtype, device, dims, offset, grad: TensorSpec(
        dtype, device, tuple(size for size, _ in dims), tuple(stride for _, stride in dims), offset, grad
    ),
    DTYPES,
    DEVICES,
    st.lists(st.tuples(DIMS, DIMS), max_size=3),
    st.sampled_from([0, 0, 0, 4, "{a}"]),
    st.booleans(),
)
INPUTS = st.one_of(
    TENSORS,
    TENSORS,
    st.builds(IntSpec, DIMS),
    st.builds(ConstantSpec, st.sampled_from([1, 1.0, True, None, "w"])),
)
CONSTANTS = st.one_of(
    st.integers(-2, 2),
    st.sampled_from(
        [0.0, -0.0, 1.0, float("inf"), True, False, None, 1j, "sum", slice(None, 2), slice(0, 2)]
    ),
    DTYPES,
    DEVICES,
    st.sampled_from([torch.strided, torch.channels_last, torch.contiguous_format, (1, 2), [1, 2], (1,), ()]),
)
TARGETS = st.sampled_from(
    [
        ("call_function", torch.add),
        ("call_function", torch.sub),
        ("call_function", operator.add),
        ("call_function", operator.iadd),
        ("call_function", operator.getitem),
        ("call_function", torch.nn.functional.gelu),
        ("call_function", torch.ops.aten.add.Tensor),
        ("call_function", torch.ops.aten.add_.Tensor),
        ("call_function", torch.ops.aten.add.Scalar),
        ("call_method", "add"),
        ("call_method", "add_"),
        ("call_method", "view"),
    ]
)


@st.composite
def steps(draw: st.DrawFn, known: int) -> Step:
    if draw(st.integers(0, 7)) == 0:
        return Step("get_attr", draw(st.sampled_from(sorted(HELD))), ())
    kind, target = draw(TARGETS)
    refs = st.integers(0, known - 1).map(Ref)
    second = st.one_of(refs, CONSTANTS, st.lists(refs, max_size=2))
    kwargs = st.dictionaries(st.sampled_from(["alpha", "dtype", "out"]), CONSTANTS, max_size=2)
    # Two arguments, because torch.fx writes operators out as text.
    named = tuple(sorted(draw(kwargs).items(), key=lambda item: item[0]))
    return Step(kind, target, (draw(refs), draw(second)), named)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    inputs = tuple(draw(st.lists(INPUTS, min_size=1, max_size=3)))
    made: list[Step] = []
    for number in range(draw(st.integers(1, 5))):
        made.append(draw(steps(len(inputs) + number)))
    refs = st.integers(0, len(inputs) + len(made) - 1).map(Ref)
    symbols = tuple(
        Symbol(
            f"{{{name}}}",
            draw(st.integers(0, 2)),
            draw(st.sampled_from([64, 2**63 - 1])),
            5,
            draw(st.booleans()),
        )
        for name in SYMBOLS
    )
    return Recipe(
        inputs,
        tuple(made),
        tuple(draw(st.lists(refs, min_size=1, max_size=3))),
        symbols,
        tuple(sorted(draw(st.sets(st.sampled_from(["{a} <= {b}", "Ne({a}, 3)", "Eq({b}, 2*{c})"]))))),
        draw(st.sampled_from([None, "{a}", "{b}"])),
    )


NAMINGS = st.builds(
    Naming,
    prefix=st.sampled_from(["x", "l_self_modules_layers_3", "add", "getitem_2", "mul"]),
    piece=st.sampled_from(["submod_0", "submod_12"]),
    index=st.integers(0, 40),
    symbols=st.permutations(["s0", "s27", "s77", "u3", "d0", "d1", "E", "I"]).map(
        lambda names: tuple(names[:3])
    ),
    hint=st.integers(2, 64),
    cuda=st.integers(0, 7),
    reverse_kwargs=st.booleans(),
    trace=st.text(max_size=3),
)


@settings(max_examples=50, deadline=None)
@given(recipes(), NAMINGS, NAMINGS)
def test_names_places_and_metadata_do_not_count(recipe: Recipe, one: Naming, other: Naming) -> None:
    assert describe(build(recipe, one)) == describe(build(recipe, other))
    assert fingerprint(build(recipe, one)) == fingerprint(build(recipe, other))


Mutation = Callable[[Recipe, st.DrawFn], Recipe]


def replaced(items: tuple[object, ...], place: int, item: object) -> tuple[object, ...]:
    return (*items[:place], item, *items[place + 1 :])


def with_step(recipe: Recipe, draw: st.DrawFn, change: Callable[[Step], Step]) -> Recipe:
    places = [place for place, step in enumerate(recipe.steps) if step.kind != "get_attr"]
    assume(places)
    place = draw(st.sampled_from(places))
    return dataclasses.replace(recipe, steps=replaced(recipe.steps, place, change(recipe.steps[place])))


def with_tensor(recipe: Recipe, draw: st.DrawFn, change: Callable[[TensorSpec], TensorSpec]) -> Recipe:
    places = [place for place, spec in enumerate(recipe.inputs) if isinstance(spec, TensorSpec)]
    assume(places)
    place = draw(st.sampled_from(places))
    return dataclasses.replace(recipe, inputs=replaced(recipe.inputs, place, change(recipe.inputs[place])))


def swap_op(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    kind, target = draw(TARGETS)
    return with_step(recipe, draw, lambda s: dataclasses.replace(s, kind=kind, target=target))


def swap_arguments(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    return with_step(recipe, draw, lambda s: dataclasses.replace(s, args=s.args[::-1]))


def in_place(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    twins = {
        torch.ops.aten.add.Tensor: torch.ops.aten.add_.Tensor,
        "add": "add_",
        operator.add: operator.iadd,
    }
    return with_step(recipe, draw, lambda s: dataclasses.replace(s, target=twins.get(s.target, s.target)))


def change_constant(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    def change(step: Step) -> Step:
        return dataclasses.replace(step, args=(step.args[0], draw(CONSTANTS)))

    return with_step(recipe, draw, change)


def change_type_only(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    twins = [
        (1, 1.0),
        (0, 0.0),
        (0.0, -0.0),
        (2, 2.0),
        (-1, -1.0),
        ((1, 2), [1, 2]),
        (True, 1),
        (1.0, 1 + 0j),
    ]

    def change(step: Step) -> Step:
        return dataclasses.replace(
            step,
            args=tuple(next((new for old, new in twins if repr(old) == repr(arg)), arg) for arg in step.args),
        )

    return with_step(recipe, draw, change)


def change_keyword(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    return with_step(
        recipe, draw, lambda s: dataclasses.replace(s, kwargs=(*s.kwargs[1:], ("other", draw(CONSTANTS))))
    )


def duplicate_step(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    return dataclasses.replace(recipe, steps=(*recipe.steps, draw(st.sampled_from(recipe.steps))))


def drop_last_step(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    last = len(recipe.inputs) + len(recipe.steps) - 1
    outputs = tuple(Ref(min(ref.number, last - 1)) for ref in recipe.outputs)
    return dataclasses.replace(recipe, steps=recipe.steps[:-1], outputs=outputs)


def change_size(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    return with_tensor(recipe, draw, lambda s: dataclasses.replace(s, size=(*s.size[1:], draw(DIMS))))


def change_stride(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    return with_tensor(recipe, draw, lambda s: dataclasses.replace(s, stride=(*s.stride[1:], draw(DIMS))))


def change_offset(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    return with_tensor(recipe, draw, lambda s: dataclasses.replace(s, storage_offset=draw(DIMS)))


def change_dtype(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    return with_tensor(recipe, draw, lambda s: dataclasses.replace(s, dtype=draw(DTYPES)))


def change_requires_grad(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    return with_tensor(recipe, draw, lambda s: dataclasses.replace(s, requires_grad=not s.requires_grad))


def to_cpu(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    return with_tensor(recipe, draw, lambda s: dataclasses.replace(s, device=torch.device("cpu")))


def reorder_inputs(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    # Only the descriptions move: the steps go on using the same numbers.
    return dataclasses.replace(recipe, inputs=tuple(draw(st.permutations(recipe.inputs))))


def reorder_outputs(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    return dataclasses.replace(recipe, outputs=tuple(draw(st.permutations(recipe.outputs))))


def change_relation(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    relation = draw(
        st.sampled_from(["{a} <= {c}", "{b} <= {a}", "Ne({a}, 4)", "Eq({b}, 3*{c})", "{a} < {b}"])
    )
    return dataclasses.replace(recipe, relations=(*recipe.relations[1:], relation))


def change_dispatch(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    return dataclasses.replace(recipe, dispatch=draw(st.sampled_from([None, "{a}", "{b}", "{c}"])))


def change_symbol(recipe: Recipe, draw: st.DrawFn) -> Recipe:
    place = draw(st.integers(0, 2))
    changes = [{"lower": 3}, {"upper": 65}, {"backed": not recipe.symbols[place].backed}]
    symbol = dataclasses.replace(recipe.symbols[place], **draw(st.sampled_from(changes)))
    return dataclasses.replace(recipe, symbols=replaced(recipe.symbols, place, symbol))


def essence(recipe: Recipe) -> str:
    """The same text for recipes that differ by nothing but names of symbols and devices."""
    return min(
        essence_named(recipe, dict(zip(SYMBOLS, names, strict=True)), swapped)
        for names in itertools.permutations(SYMBOLS)
        for swapped in (False, True)
    )


def essence_named(recipe: Recipe, names: dict[str, str], swapped: bool) -> str:
    def text(value: object) -> str:
        named = re.sub(r"\{(.)\}", lambda match: f"{{{names[match[1]]}}}", repr(value))
        products = re.sub(r"(\{.\})\*(\{.\})", lambda match: "*".join(sorted(match.groups())), named)
        return re.sub(r"index=([01])", lambda match: f"index={int(match[1]) ^ swapped}", products)

    steps = [
        dataclasses.replace(step, kwargs=tuple(sorted(dict(step.kwargs).items()))) for step in recipe.steps
    ]
    parts = [text(recipe.inputs), text(steps), text(recipe.outputs), text(recipe.dispatch)]
    return str([*parts, sorted(map(text, recipe.symbols)), sorted(set(map(text, recipe.relations)))])


MUTATIONS = [
    swap_op, swap_arguments, in_place, change_constant, change_type_only, change_keyword, duplicate_step,
    drop_last_step, change_size, change_stride, change_offset, change_dtype, change_requires_grad, to_cpu,
    reorder_inputs, reorder_outputs, change_relation, change_dispatch, change_symbol,
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_anything_that_can_change_a_result_counts(mutation: Mutation, data: st.DataObject) -> None:
    recipe = data.draw(recipes())
    mutated = mutation(recipe, data.draw)
    assume(essence(recipe) != essence(mutated))
    assert fingerprint(build(recipe, data.draw(NAMINGS))) != fingerprint(build(mutated, data.draw(NAMINGS)))


@settings(max_examples=50, deadline=None)
@given(recipes(), recipes(), NAMINGS)
def test_unlike_pieces_never_share(one: Recipe, other: Recipe, naming: Naming) -> None:
    assume(essence(one) != essence(other))
    assert fingerprint(build(one, naming)) != fingerprint(build(other, Naming()))


def test_the_description_has_a_line_for_each_symbol_relation_input_and_node() -> None:
    spec = TensorSpec(torch.float32, torch.device("cuda:3"), ("{b}", "2*{a} + 1"), (8, 1))
    scaled = Step("call_function", torch.add, (Ref(0), 1.0), (("out", None), ("alpha", Ref(1))))
    symbols = (Symbol("{a}", 0, 64, 5), Symbol("{b}", 2, 2**63 - 1, 7, backed=False))
    recipe = Recipe((spec, IntSpec("{a}")), (scaled,), (Ref(2), Ref(0)), symbols, ("{b} > {a}",), "{a}")
    assert describe(build(recipe, Naming(cuda=2))) == (
        "torch-piecewise piece, format 1\n"
        "symbol d0 in [2, inf] unbacked\n"
        "symbol d1 in [0, 64] backed dispatch\n"
        "relation Lt(d1, d0)\n"
        "%0 = input tensor torch.float32 cuda#0 size=(d0, 2*d1 + 1) stride=(8, 1) offset=0 "
        "requires_grad=False\n"
        "%1 = input int d1\n"
        "%2 = call torch.add(%0, 1.0, alpha=%1, out=None)\n"
        "%3 = output (%2, %0)\n"
    )


def test_a_fingerprint_is_the_sha256_of_the_description() -> None:
    piece = build(Recipe((IntSpec(3),), (), (Ref(0),), (), (), None), Naming())
    assert fingerprint(piece) == hashlib.sha256(describe(piece).encode()).hexdigest()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"inputs": ()}, "one per placeholder"),
        ({"dispatch": "s9"}, "dispatches on a symbol"),
        ({"relations": ("s0 < s9",)}, "does not declare"),
        ({"relations": ("s0 <",)}, "no expression"),
        ({"relations": ("s0 ^ 2",)}, "no expression"),
        ({"relations": ("__import__('os').getcwd()",)}, "no expression"),
        ({"symbols": (Symbol("s0", 0, 1, 1), Symbol("s0", 0, 2, 1))}, "two symbols of one name"),
        ({"symbols": ()}, "does not declare"),
    ],
)
def test_a_malformed_piece_is_refused_with_its_name(change: dict[str, object], says: str) -> None:
    recipe = Recipe((IntSpec("{a}"),), (), (Ref(0),), (Symbol("{a}", 0, 9, 5),), (), "{a}")
    piece = dataclasses.replace(build(recipe, Naming(piece="submod_6")), **change)
    with pytest.raises(FingerprintError, match=says) as caught:
        fingerprint(piece)
    assert "submod_6" in str(caught.value)
    assert caught.value.hint
