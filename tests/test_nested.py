"""Compiled parts inside compiled wholes, classes that inherit, and what stays uncompiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_piecewise as tp
from tests.graphs import Stack
from tests.models.checks import assert_same
from torch_piecewise.compiled import CompiledCall
from torch_piecewise.errors import ConfigError

pytestmark = pytest.mark.usefixtures("no_grad")

SETTINGS: dict[str, Any] = {"backend": "eager", "splitting_ops": ["tests::attention"]}


class Whole(nn.Module):
    """A head on top of a :class:`Stack`."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner if inner is not None else Stack(2)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.inner(ids)).relu()


def ids(count: int = 5) -> Tensor:
    return torch.randint(0, 50, (count,))


def counters(model: Any) -> Any:
    return tp.program_of(model).counters


# -- a part inside a whole


@pytest.mark.parametrize("first", ["whole", "part"])
def test_a_compiled_part_is_traced_with_the_whole_and_is_its_own_program_alone(first: str) -> None:
    model = Whole()
    reference = copy.deepcopy(model)
    tp.compile(model.inner, compile_sizes=[1, 2], **SETTINGS)
    tp.compile(model, **SETTINGS)
    whole = counters(model).expect(
        graphs_captured=1, pieces=3, cuts=2, distinct_pieces=3, artifacts_compiled=3
    )
    part = counters(model.inner).expect(
        graphs_captured=1, pieces=3, cuts=2, distinct_pieces=3, artifacts_compiled=9
    )
    calls: list[Callable[[], None]] = [
        lambda: assert_same(model(ids), reference(ids)),
        lambda: assert_same(model.inner(ids), reference.inner(ids)),
    ]
    with whole, part:
        for size in (5, 1):
            ids = torch.randint(0, 50, (size,))
            for call in calls if first == "whole" else reversed(calls):
                call()


def test_calling_the_whole_compiles_nothing_of_the_part() -> None:
    model = Whole(tp.compile(Stack(2), **SETTINGS))
    tp.compile(model, **SETTINGS)
    with counters(model.inner).expect(graphs_captured=0, artifacts_compiled=0):
        model(ids())


def test_three_levels_and_a_part_that_is_restored() -> None:
    model = Whole(Whole(tp.compile(Stack(1), **SETTINGS)))
    model.inner.head = nn.Linear(16, 16)
    reference = copy.deepcopy(model)
    tp.compile(model.inner, **SETTINGS)
    tp.compile(model, **SETTINGS)
    x = ids()
    with counters(model).expect(graphs_captured=1, recompiles=0):
        assert_same(model(x), reference(x))
        tp.program_of(model.inner).restore()
        assert_same(model(x), reference(x))
    assert_same(model.inner(x), reference.inner(x))


def test_a_replaced_part_is_noticed_by_the_whole() -> None:
    model = tp.compile(Whole(tp.compile(Stack(1), **SETTINGS)), **SETTINGS)
    model(ids())
    model.inner = tp.compile(Stack(1), **SETTINGS)
    x = ids()
    with counters(model).expect(recompiles=1):
        assert_same(model(x), model.forward(x))


def test_a_compiled_part_called_by_an_uncompiled_model_runs_in_pieces() -> None:
    model = Whole(tp.compile(Stack(2), **SETTINGS))
    with counters(model.inner).expect(graphs_captured=1, pieces=3):
        model(ids())


@tp.compile(backend="eager")
def doubled(x: Tensor) -> Tensor:
    return x * 2


def test_a_compiled_function_inside_a_compiled_function() -> None:
    @tp.compile(backend="eager")
    def outer(x: Tensor) -> Tensor:
        return doubled(x) + 1

    x = torch.randn(3)
    doubled(x)
    with counters(outer).expect(graphs_captured=1, pieces=1), counters(doubled).expect(graphs_captured=0):
        assert_same(outer(x), x * 2 + 1)


@pytest.mark.parametrize("called_before", [False, True])
def test_a_compiled_part_inside_torch_compile(called_before: bool) -> None:
    torch._dynamo.reset()
    model = Whole(tp.compile(Stack(1), **SETTINGS))
    x = ids()
    want = copy.deepcopy(model)(x)
    if called_before:
        model.inner(x)
    stock = torch.compile(model, backend="eager", fullgraph=True)
    with counters(model.inner).expect(graphs_captured=0):
        assert_same(stock(x), want)


def test_torch_compile_inside_a_compiled_whole() -> None:
    model = Whole(torch.compile(Stack(1), backend="eager"))
    compiled = tp.compile(model, **SETTINGS)
    x = ids()
    with counters(compiled).expect(graphs_captured=1, cuts=1):
        assert_same(compiled(x), model.forward(x))


# -- classes


@tp.compile(backend="eager", compile_sizes=[1])
class Base(nn.Module):
    """Decorated; subclasses below."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))


class Inheriting(Base):
    """Changes nothing that runs."""


class Overriding(Base):
    """Another forward, with another argument name, around the one above it."""

    def __init__(self) -> None:
        super().__init__(4)
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(y) * self.scale


@tp.compile(backend="eager", compile_sizes=[1, 2, 3])
class Decorated(Overriding):
    """Decorated itself: its settings count."""

    def forward(self, z: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(z) + 1


@pytest.mark.parametrize(
    ("cls", "artifacts"), [(Base, 2), (Inheriting, 2), (Overriding, 2), (Decorated, 4)], ids=str
)
def test_the_decorated_class_nearest_to_an_object_decides_for_it(cls: type[Base], artifacts: int) -> None:
    model = cls()
    x = torch.randn(5, 4)
    with counters(model).expect(graphs_captured=1, pieces=1, artifacts_compiled=artifacts):
        assert_same(model(x), model.forward(x))


def test_settings_of_a_base_class_are_not_checked_against_a_decorated_subclass() -> None:
    @tp.compile(backend="eager", dynamic_arg_dims={"x": 0})
    class Old(Base):
        pass

    @tp.compile(backend="eager", dynamic_arg_dims={"y": 0})
    class New(Old):
        def forward(self, y: Tensor) -> Tensor:  # type: ignore[override]
            return self.layer(y)

    x = torch.randn(2, 4)
    model = New()
    assert_same(model(x), model.forward(x))
    with pytest.raises(ConfigError, match=r"names an argument that .* lacks"):
        type("Odd", (Old,), {"forward": lambda self, z: z})()


class Method(nn.Module):
    """Its ``forward`` is compiled, not the class."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    @tp.compile(backend="eager")
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class CallsUp(Method):
    """An uncompiled method around a compiled one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class BothMethods(Method):
    """A compiled method around a compiled one."""

    @tp.compile(backend="eager")
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize("cls", [Method, CallsUp, BothMethods])
def test_methods_that_are_compiled_and_call_each_other(cls: type[Method]) -> None:
    first, second = cls(), cls()
    x = torch.randn(3, 4)
    factor = 1 if cls is Method else 2
    for model in (first, second):
        assert_same(model(x), model.layer(x) * factor)
    handle = tp.program_of(super(CallsUp, first).forward if cls is CallsUp else first)
    assert handle is not tp.program_of(super(CallsUp, second).forward if cls is CallsUp else second)
    assert handle.stats.traces == 1


def test_a_whole_whose_parts_have_compiled_methods() -> None:
    model = tp.compile(nn.Sequential(Method(), BothMethods()), backend="eager", dynamic_arg_dims={"input": 0})
    x = torch.randn(3, 4)
    with counters(model).expect(graphs_captured=1), counters(model[0]).expect(graphs_captured=0):
        assert_same(model(x), model[1].layer(model[0].layer(x)) * 2)


def test_equal_objects_have_programs_of_their_own() -> None:
    class Scaled:
        def __init__(self, by: float) -> None:
            self.by = torch.tensor(by)

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 1

        @tp.compile(backend="eager")
        def __call__(self, x: Tensor) -> Tensor:
            return x * self.by

    x = torch.randn(3)
    one, other = Scaled(2.0), Scaled(3.0)
    assert_same([one(x), other(x)], [x * 2, x * 3])


# -- ignore


@tp.ignore
class Eager(Base):
    """Would be compiled, if it were not taken out."""


@tp.compile(backend="eager")
class Again(Eager):
    """And is taken in again."""


class Under(Eager):
    """Inherits being taken out."""


@pytest.mark.parametrize(("cls", "is_compiled"), [(Eager, False), (Under, False), (Again, True)])
def test_an_ignored_class_opts_out_of_a_decorated_base(cls: type[Base], is_compiled: bool) -> None:
    model = cls()
    x = torch.randn(2, 4)
    assert_same(model(x), torch.tanh(model.layer(x)))
    if is_compiled:
        assert tp.program_of(model).stats.traces == 1
        return
    with pytest.raises(ConfigError, match="This model is not compiled"):
        tp.program_of(model)


class Mixer(nn.Module):
    """An ignored module, method and function inside a whole."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.layer = nn.Linear(4, 4)

    @tp.ignore
    def halve(self, x: Tensor) -> Tensor:
        return self.layer(x) / 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.part(x.sin()).cos()
        x = self.halve(x).tan()
        return shifted(x, by=2.0).exp()


@tp.ignore
def shifted(x: Tensor, by: float) -> Tensor:
    return (x + by).sqrt().abs()


def names_of_ops(model: Any) -> dict[bool, set[str]]:
    """Whether compiled -> the operations in the pieces of its trace."""
    program = tp.program_of(model).entries[0].program
    compiled = {
        getattr(node.target, "__name__", str(node.target))
        for info in program.pieces.infos
        for node in program.pieces.graph(info.name).graph.nodes
        if node.op.startswith("call")
    }
    source = {
        name
        for name in ("linear", "tanh", "truediv", "add", "sqrt", "abs")
        if name in program.stitched.source
    }
    return {True: compiled, False: source}


def test_what_is_ignored_runs_eagerly_between_the_pieces_of_a_whole() -> None:
    model = Mixer(Eager())
    compiled = tp.compile(copy.deepcopy(model), backend="eager")
    for size in (3, 1):
        x = torch.rand(size, 4) / 4
        assert_same(compiled(x), model(x))
    with counters(compiled).expect():
        stats = tp.program_of(compiled).stats
        assert (stats.traces, stats.pieces, stats.cuts) == (1, 4, 3)
    ops = names_of_ops(compiled)
    assert not {"linear", "tanh", "truediv", "add", "sqrt", "abs"} & ops[True]
    assert {"linear", "tanh", "sqrt", "abs"} <= ops[False]


def test_a_compiled_subclass_of_an_ignored_class_is_compiled_in_a_whole() -> None:
    compiled = tp.compile(Mixer(Again()), backend="eager")
    compiled(torch.rand(3, 4))
    assert tp.program_of(compiled).stats.cuts == 2


def test_what_is_ignored_is_a_cut_for_split_graph_and_torch_compile() -> None:
    torch._dynamo.reset()
    model = Mixer(Eager())
    x = torch.rand(3, 4)
    backend = tp.PiecewiseCompileBackend(backend="eager", disable_cache=True, splitting_ops=[])
    assert_same(torch.compile(model, backend=backend, dynamic=True)(x), model(x))
    assert backend.program is not None
    assert backend.program.cuts == 3


def test_an_ignored_instance_cannot_be_compiled_by_itself() -> None:
    with pytest.raises(ConfigError, match=r"Eager is marked with tp.ignore and cannot be compiled"):
        tp.compile(Eager(), backend="eager")


def test_only_classes_and_functions_are_ignored() -> None:
    with pytest.raises(ConfigError, match=r"(?s)tp.ignore was given.*name its class in splitting_ops"):
        tp.ignore(nn.ReLU())


def test_a_whole_with_ignored_and_compiled_parts_is_kept(tmp_path: Path) -> None:
    model = nn.Sequential(Mixer(Eager()), Method())
    settings = {"cache_dir": str(tmp_path), "backend": "tests.kept_compiler.KeptEager"}
    x = torch.rand(3, 4)
    want = copy.deepcopy(model)(x)
    for traces in (1, 0):
        again = tp.compile(copy.deepcopy(model), dynamic_arg_dims={"input": 0}, **settings)
        with counters(again).expect(graphs_captured=traces):
            assert_same(again(x), want)


def test_taking_a_class_out_is_noticed_by_the_next_start(tmp_path: Path) -> None:
    settings = {"cache_dir": str(tmp_path), "backend": "tests.kept_compiler.KeptEager"}
    x = torch.rand(3, 4)
    for mark, cuts in ((lambda cls: cls, 2), (tp.ignore, 3)):
        part = mark(type("Part", (nn.Tanh,), {"__module__": __name__, "forward": nn.Tanh.forward}))
        whole = tp.compile(Mixer(part()), **settings)
        whole(x)
        stats = tp.program_of(whole).stats
        assert (stats.traces, stats.cuts) == (1, cuts)


# -- enable_if


def is_wide(module: Any) -> bool:
    return bool(module.layer.in_features > 4)


@tp.compile(backend="eager", enable_if=is_wide)
class Sometimes(nn.Module):
    """Compiled where it is wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def is_compiled(model: Any) -> bool:
    try:
        return isinstance(tp.program_of(model), CompiledCall)
    except ConfigError:
        return False


def test_a_predicate_decides_for_each_instance_of_a_class() -> None:
    assert [is_compiled(Sometimes(width)) for width in (4, 8)] == [False, True]
    x = torch.randn(2, 4)
    model = Sometimes(4)
    assert_same(model(x), model.layer(x))


def test_a_predicate_decides_for_a_module() -> None:
    for model, wanted in ((nn.Linear(4, 4), False), (nn.Linear(8, 8), True)):
        fields = {"backend": "eager", "dynamic_arg_dims": {"input": 0}}
        assert tp.compile(model, enable_if=lambda module: module.in_features > 4, **fields) is model
        assert is_compiled(model) is wanted


def test_a_predicate_is_asked_about_a_function_and_about_the_object_of_a_method() -> None:
    asked: list[Any] = []

    def note(what: Any) -> bool:
        asked.append(what)
        return False

    def plain(x: Tensor) -> Tensor:
        return x + 1

    class Engine:
        @tp.compile(backend="eager", enable_if=note)
        def step(self, x: Tensor) -> Tensor:
            return x * 2

    x = torch.randn(3)
    function, engine = tp.compile(plain, backend="eager", enable_if=note), Engine()
    for _ in range(2):
        assert_same([function(x), engine.step(x)], [x + 1, x * 2])
    assert asked == [plain, engine]
    assert not is_compiled(function)


def test_a_predicate_has_to_be_one() -> None:
    with pytest.raises(ConfigError, match="enable_if is not a predicate"):
        tp.compile(nn.ReLU(), enable_if=True)  # type: ignore[arg-type]
