"""Another model than the one that was baked is refused, or served right, never served wrong unnoticed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import torch_piecewise as tp
from tests.bundles import served
from tests.models.checks import assert_same
from torch_piecewise.errors import BundleError, GuardError
from torch_piecewise.runtime.code import code_tag, tags_differ

SETTINGS: dict[str, Any] = {"backend": "eager", "disable_cache": True, "splitting_ops": []}


class Config:
    def __init__(self) -> None:
        self.scale = 2.0
        self.sizes = [1, 2]


class Attributes(nn.Module):
    """Reads values of many kinds."""

    factor = 3

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.first = nn.Linear(4, 4, bias=False)
        self.act = nn.ReLU()
        self.function = functional.silu
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.norm = nn.LayerNorm(4, eps=1e-5)
        self.drop = nn.Dropout(0.5)
        self.dtype = torch.float32
        self.label = "unused"

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x)) * self.config.scale + sum(self.config.sizes) * self.factor
        for layer in self.layers:
            x = layer(x)
        return self.drop(self.norm(self.function(x))).to(self.dtype)


def bake(model: nn.Module, path: Path, example: tuple[Any, ...] | None = None, **fields: Any) -> Path:
    given = example if example is not None else (torch.randn(3, 4),)
    tp.bake(model, given, path, **{**SETTINGS, "dynamic_arg_dims": {"x": 0}, **fields})
    return path


@pytest.fixture(scope="module")
def attributes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake(Attributes().eval(), tmp_path_factory.mktemp("attributes") / "b")


def set_to(path: str, value: Any) -> Callable[[nn.Module], None]:
    *owners, name = path.split(".")

    def change(model: nn.Module) -> None:
        owner: Any = model
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "what", "expected", "got"),
    [
        (set_to("config.scale", 4.0), "config.scale", "2.0", "4.0"),
        (set_to("config.scale", 2), "config.scale", "2.0", "2"),
        (set_to("config.sizes", [1, 3]), "config.sizes[1]", "2", "3"),
        (set_to("config.sizes", [1, 2, 3]), "config.sizes", "length 2", "length 3"),
        (set_to("config", served.Plain()), "config", "a Config", "a Plain"),
        (set_to("norm.eps", 1e-3), "norm.eps", "1e-05", "0.001"),
        (set_to("factor", 5), "factor", "3", "5"),
        (set_to("dtype", torch.float64), "dtype", "torch.float32", "torch.float64"),
        (set_to("function", functional.gelu), "function", "silu", "gelu"),
        (set_to("act", nn.GELU()), "act", "a ReLU", "a GELU"),
        (set_to("act", None), "act", "a ReLU", "no such module"),
        (set_to("first", nn.Linear(4, 4)), "first.bias", "None", "a tensor"),
        (lambda m: m.layers.append(nn.Linear(4, 4)), "layers.2", "no such module", "a Linear"),
        (lambda m: m.register_forward_hook(double), "forward hooks", "none", "double"),
        (
            lambda m: m.layers[1].register_forward_pre_hook(double),
            "layers.1: forward hooks",
            "none",
            "double",
        ),
        (set_to("layers.1.forward", torch.relu), "layers.1.forward", "the class's own", "one of this object"),
    ],
)
def test_what_the_trace_read_of_the_model_is_compared_on_loading(
    attributes: Path, change: Callable[[Any], None], what: str, expected: str, got: str
) -> None:
    model = Attributes().eval()
    change(model)
    with pytest.raises(BundleError) as refused:
        tp.load(attributes, model)
    assert str(refused.value) == (
        f"The model does not fit the bundle: {what} differs\n"
        f"  expected: {expected}\n"
        f"  got: {got}\n"
        "  to do: make the model as it was made for tp.bake, or bake it again"
    )
    assert model._compiled_call_impl is None


def double(_module: nn.Module, *values: Any) -> Any:
    return values[-1] * 2 if isinstance(values[-1], Tensor) else None


def test_what_no_call_reads_may_differ(attributes: Path, no_grad: None) -> None:
    model = Attributes().eval()
    plain = copy.deepcopy(model)
    model.label = "other"
    model.extra = 3  # type: ignore[assignment]
    x = torch.randn(5, 4)
    assert_same(tp.load(attributes, model)(x), plain(x))


def test_a_model_with_hooks_is_served_with_hooks_of_the_same_names_only(
    tmp_path: Path, no_grad: None
) -> None:
    def hooked() -> Attributes:
        model = Attributes().eval()
        model.register_forward_hook(double)
        return model

    path = bake(hooked(), tmp_path / "b")
    model, x = hooked(), torch.randn(5, 4)
    want = model(x)
    assert_same(tp.load(path, model)(x), want)
    with pytest.raises(BundleError, match="forward hooks differs\n  expected: double\n  got: none"):
        tp.load(path, Attributes().eval())


# -- code


def version(text: str) -> type[nn.Module]:
    """The class ``Edited`` as a file with ``text`` in its helper would give it."""
    source = f"""
class Edited(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    @torch.no_grad()
    def forward(self, x):
        return self.helped(self.inner(x))

    def helped(self, x):
        {text}
"""
    scope: dict[str, Any] = {"torch": torch, "__name__": f"{__name__}.{len(text)}"}
    exec(source, scope)
    edited: type[nn.Module] = scope["Edited"]
    return edited


def test_a_model_whose_code_was_edited_is_refused(tmp_path: Path, no_grad: None) -> None:
    path = bake(version("return x * 2 + (x > 0)")().eval(), tmp_path / "b")
    with pytest.raises(BundleError, match=r"helped differs\n  expected: the code that was baked\n"):
        tp.load(path, version("return x * 3 + (x > 0)")().eval())
    again = version("# A remark.\n        return x * 2 + (x > 0)")().eval()  # of another module, too
    x = torch.randn(5, 4)
    want = again(x)
    assert_same(tp.load(path, again)(x), want)


def test_an_edited_forward_is_refused_however_it_is_decorated(tmp_path: Path) -> None:
    def model(factor: int) -> nn.Module:
        class Scaled(nn.Module):
            @torch.inference_mode(mode=False)
            def forward(self, x: Tensor) -> Tensor:
                return x * 2 if factor == 2 else x * factor

        if factor == 2:
            return Scaled().eval()

        class Other(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * factor

        Other.__qualname__ = Scaled.__qualname__
        return Other().eval()

    path = bake(model(2), tmp_path / "b")
    tp.load(path, model(2))
    with pytest.raises(BundleError, match=r"\.?forward differs"):
        tp.load(path, model(3))


def test_another_function_of_the_same_name_is_refused(tmp_path: Path) -> None:
    def model(factor: int) -> nn.Module:
        def helper(x: Tensor) -> Tensor:
            return x + 1

        if factor == 3:

            def helper(x: Tensor) -> Tensor:
                return x * 3

        made = Attributes()
        made.function = helper
        return made.eval()

    path = bake(model(2), tmp_path / "b")
    tp.load(path, model(2))
    with pytest.raises(BundleError, match=r"function differs\n  expected: the code that was baked"):
        tp.load(path, model(3))


def test_an_edited_forward_of_one_object_is_refused(tmp_path: Path) -> None:
    def model(function: Callable[..., Any]) -> nn.Module:
        made = Attributes().eval()
        made.layers[0].forward = function
        return made

    path = bake(model(lambda x: x + 1), tmp_path / "b")
    tp.load(path, model(lambda x: x + 1))
    with pytest.raises(BundleError, match=r"layers\.0\.forward differs"):
        tp.load(path, model(lambda x: x - 1))


def test_a_class_that_was_changed_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bake(Attributes().eval(), tmp_path / "b")
    tp.load(path, Attributes().eval())
    monkeypatch.setattr(Attributes, "forward", lambda self, x: self.first(x))
    with pytest.raises(BundleError, match=r": \.?forward differs"):
        tp.load(path, Attributes().eval())


def test_code_of_another_python_says_nothing() -> None:
    assert not tags_differ("3.11 aa", "3.12 bb")
    assert not tags_differ("3.11 aa", "3.11 aa")
    assert tags_differ("3.11 aa", "3.11 bb")
    assert tags_differ("3.11 aa", "")
    assert tags_differ("", "3.11 aa")


def closing_over(name: str) -> nn.Module:
    """A model whose ``forward`` closes over a variable of this name."""
    source = f"""
def make(torch):
    {name} = torch.Tensor
    class M(torch.nn.Module):
        def forward(self, x):
            assert isinstance(x, {name})
            return x + 1
    return M
"""
    scope: dict[str, Any] = {"__name__": __name__}
    exec(source, scope)
    made: nn.Module = scope["make"](torch)().eval()
    return made


@pytest.mark.parametrize("name", ["Tensor", "owner", "autocast", "grad_enabled", "size", "plain"])
def test_names_of_closed_over_variables_change_no_check_of_a_call(
    tmp_path: Path, no_grad: None, name: str
) -> None:
    run = tp.load(bake(closing_over(name), tmp_path / "b"), closing_over(name))
    assert_same(run(torch.ones(5, 4)), torch.full((5, 4), 2.0))
    for other in (torch.ones(5, 4, dtype=torch.int64), torch.ones(5, 3), torch.ones(4, 5).t()):
        with pytest.raises(GuardError):
            run(other)
    with torch.enable_grad(), pytest.raises(GuardError, match="grad mode was off"):
        run(torch.ones(5, 4))
    with torch.autocast("cpu"), pytest.raises(GuardError, match="autocast"):
        run(torch.ones(5, 4))
    with pytest.raises(GuardError, match="training"):
        run.train()(torch.ones(5, 4))


_EDITED = """
import functools

import torch
from torch import nn


def wrapping(function):
    @functools.wraps(function)
    def inner(self, x):
        return function(self, x) + {wraps}

    return inner


def hiding(function):
    def inner(self, x):
        return function(self, x)

    return inner


class Base(nn.Module):
    def forward(self, x):
        return x * {base}

    def __call__(self, x):
        return super().__call__(x) * {call}


class Child(nn.Module):
    def encode(self, x):
        return self.step(x)

    def step(self, x, factor={default}, *, more={keyword}):
        return x * factor * more + {child}

    def elsewhere(self, x):
        return x - {unnamed}


class Root(Base):
    def __init__(self):
        super().__init__()
        self.child = Child()

    @torch.no_grad()
    @wrapping
    def forward(self, x):
        "{docstring}"
        return super().forward(self.child.encode(x)) + self.hidden(x)

    @hiding
    def hidden(self, x):
        return x + {hidden}
"""
_PLACES = ["wraps", "base", "call", "default", "keyword", "child", "hidden", "docstring", "unnamed"]


def edited(place: str = "") -> nn.Module:
    """A model of its own classes, with another number at one place."""
    scope: dict[str, Any] = {"__name__": f"{__name__}.{place or 'first'}"}
    exec(_EDITED.format(**{one: 3 if one == place else 2 for one in _PLACES}), scope)
    made: nn.Module = scope["Root"]().eval()
    return made


@pytest.fixture(scope="module")
def edited_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake(edited(), tmp_path_factory.mktemp("edited") / "b")


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("wraps", "forward"),
        ("base", "Base.forward"),
        ("call", "__call__"),
        ("default", "child.step"),
        ("keyword", "child.step"),
        ("child", "child.step"),
        ("hidden", "hidden"),
    ],
)
def test_an_edit_of_any_code_that_a_call_may_run_is_refused(
    edited_bundle: Path, place: str, what: str
) -> None:
    tp.load(edited_bundle, edited())
    with pytest.raises(BundleError, match=f": {what} differs\n  expected: the code that was baked"):
        tp.load(edited_bundle, edited(place))


@pytest.mark.parametrize("place", ["docstring", "unnamed"])
def test_an_edit_of_what_no_call_runs_is_not_refused(edited_bundle: Path, no_grad: None, place: str) -> None:
    model, x = edited(place), torch.randn(5, 4)
    want = model(x)
    assert_same(tp.load(edited_bundle, model)(x), want)


def test_a_function_that_hides_a_method_of_one_object_is_refused(edited_bundle: Path, tmp_path: Path) -> None:
    def model(function: Callable[..., Any]) -> nn.Module:
        made = edited()
        made.child.step = function
        return made

    with pytest.raises(BundleError, match=r"child\.step differs\n  expected: the class's own"):
        tp.load(edited_bundle, model(lambda x: x + 1))
    path = bake(model(lambda x: x + 1), tmp_path / "b")
    tp.load(path, model(lambda x: x + 1))
    with pytest.raises(BundleError, match=r"child\.step differs\n  expected: one of this object"):
        tp.load(path, edited())
    with pytest.raises(BundleError, match=r"child\.step differs\n  expected: the code that was baked"):
        tp.load(path, model(lambda x: x - 1))


def test_code_of_a_root_that_reads_nothing_of_itself_is_compared(tmp_path: Path) -> None:
    path = bake(Act(), tmp_path / "b")
    tp.load(path, Act())
    with pytest.raises(BundleError, match="the model itself differs\n  expected: a Act\n  got: a OtherAct"):
        tp.load(path, OtherAct())


def test_under_another_python_or_optimisation_code_is_not_compared(
    edited_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("code", "model"):
        monkeypatch.setattr(f"torch_piecewise.runtime.{module}.PYTHON", "cpython-311-9")
    tp.load(edited_bundle, edited("child"))
    model = edited()
    type(model.child).forward = lambda _self, x: x  # type: ignore[method-assign,assignment,union-attr]
    tp.load(edited_bundle, model)
    monkeypatch.undo()
    with pytest.raises(BundleError, match=r"child\.forward differs"):
        tp.load(edited_bundle, model)


class Bag(dict[str, Any]):
    """Answers every question for an attribute."""

    def __getattr__(self, name: str) -> Any:
        return Bag()


class Wrapped:
    __wrapped__ = None


class Loop:
    @property
    def __wrapped__(self) -> Any:
        return self

    def __call__(self) -> None: ...


def test_objects_that_answer_for_what_they_wrap_have_no_code() -> None:
    for value in (Bag(), Wrapped(), Loop(), len, torch.sin, torch.nn.Linear.forward, Bag, None):
        assert not code_tag(value)
    recursive: Any = lambda: recursive()  # noqa: E731
    assert code_tag(recursive) == code_tag(functools.lru_cache(recursive))
    assert code_tag(functools.partial(recursive, 1)) != code_tag(functools.partial(recursive, 2))


# -- parameters and buffers


class Tied(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False)
        self.b = nn.Linear(4, 4, bias=False)
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_parameters_that_were_tied_have_to_be(tmp_path: Path, no_grad: None) -> None:
    path, x = bake(Tied(tied=True), tmp_path / "b"), torch.randn(5, 4)
    with pytest.raises(BundleError) as refused:
        tp.load(path, Tied(tied=False))
    assert str(refused.value) == (
        "The model does not fit the bundle: b.weight differs\n"
        "  expected: the same tensor as a.weight\n"
        "  got: another, or none\n"
        "  to do: tie them as they were when the bundle was baked, or bake it again"
    )
    model = tp.load(path, Tied(tied=True))
    assert_same(model(x), functional.linear(functional.linear(x, model.a.weight), model.a.weight))
    model.b.weight = nn.Parameter(torch.randn(4, 4))
    with pytest.raises(GuardError, match="were one tensor"):
        model(x)
    free, apart = bake(Tied(tied=False), tmp_path / "free"), Tied(tied=True)
    want = apart(x)
    assert_same(tp.load(free, apart)(x), want)


def test_weights_in_a_file_that_are_two_where_one_was_baked_are_refused(
    tmp_path: Path, no_grad: None
) -> None:
    path = bake(Tied(tied=True), tmp_path / "b")
    one, other, x = torch.randn(4, 4), torch.randn(4, 4), torch.randn(5, 4)
    save_file({"a.weight": one, "b.weight": one.clone()}, tmp_path / "same.safetensors")
    assert_same(tp.load(path, tmp_path / "same.safetensors")(x), x @ one.t() @ one.t())
    save_file({"a.weight": one, "b.weight": other}, tmp_path / "two.safetensors")
    with pytest.raises(BundleError) as refused:
        tp.load(path, tmp_path / "two.safetensors")
    assert str(refused.value) == (
        "The weights do not fit the bundle: b.weight differs from a.weight\n"
        "  expected: one tensor under both names, as in the model that was baked\n"
        "  got: two tensors\n"
        "  to do: bake a model in which they are two"
    )


class Overlapping(nn.Module):
    """Changes ``k`` in place, reads ``v`` before and after, and ``w`` that nobody changes."""

    def __init__(self, *, of_k: bool = False, of_w: bool = False) -> None:
        super().__init__()
        memory, weights = torch.randn(6), torch.randn(6)
        self.register_buffer("k", memory[:4])
        self.register_buffer("v", memory[1:5] if of_k else torch.randn(4))
        self.register_buffer("w", weights[:4])
        self.register_buffer("u", weights[2:] if of_w else torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.v + self.w - self.u
        self.k.add_(1)
        return y + self.v


@pytest.mark.parametrize("at_bake", [False, True])
def test_buffers_that_overlap_one_that_is_written_have_to_overlap_as_they_did(
    tmp_path: Path, no_grad: None, at_bake: bool
) -> None:
    path = bake(Overlapping(of_k=at_bake), tmp_path / "b")
    texts = ("apart from k", "in the memory of k")
    with pytest.raises(BundleError) as refused:
        tp.load(path, Overlapping(of_k=not at_bake))
    assert str(refused.value) == (
        "The model does not fit the bundle: v differs\n"
        f"  expected: {texts[at_bake]}\n"
        f"  got: {texts[not at_bake]}\n"
        "  to do: a call changes one of them in place: lay them out as they were when the bundle was baked"
    )
    torch.manual_seed(0)
    model = Overlapping(of_k=at_bake, of_w=True)
    torch.manual_seed(0)
    plain, x = Overlapping(of_k=at_bake, of_w=True), torch.randn(5, 4)
    assert_same(tp.load(path, model)(x), plain(x))
    assert_same(model.k, plain.k)


class Marked(Tensor):
    """A tensor that computes otherwise."""


class Holder(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize(
    ("weight", "expected", "got"),
    [
        (torch.randn(4, 4).as_subclass(Marked), "a plain tensor", "a Marked"),
        (torch.empty(4, 4, device="meta"), "float32 [4, 4] on cpu", "float32 [4, 4] on meta"),
        (torch.randn(4, 4).to_sparse(), "a dense tensor", "torch.sparse_coo"),
        (torch.randn(4, 4).to_sparse_csr(), "a dense tensor", "torch.sparse_csr"),
        (torch.randn(4, 1).expand(4, 4), "strides [4, 1]", "strides [1, 0]"),
        (torch.randn(4, 4).double(), "float32 [4, 4] on cpu", "float64 [4, 4] on cpu"),
        (torch.randn(4, 4, dtype=torch.cfloat).conj().imag, "strides [4, 1]", "strides [8, 2]"),
    ],
    ids=["subclass", "meta", "sparse", "csr", "expanded", "dtype", "imaginary"],
)
def test_a_buffer_of_another_kind_is_refused(tmp_path: Path, weight: Tensor, expected: str, got: str) -> None:
    path = bake(Holder(torch.randn(4, 4)), tmp_path / "b")
    with pytest.raises(BundleError) as refused:
        tp.load(path, Holder(weight))
    assert f"weight differs\n  expected: {expected}\n  got: {got}\n" in str(refused.value)


def test_a_tensor_of_a_class_of_its_own_is_not_baked(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as refused:
        bake(Holder(torch.randn(4, 4).as_subclass(Marked)), tmp_path / "b")
    assert str(refused.value) == (
        "A bundle cannot describe weight\n"
        "  expected: a dense tensor of fixed size and of no class of its own\n"
        "  got: Marked"
    )


def test_parameters_may_be_views_of_one_flat_memory(tmp_path: Path, no_grad: None) -> None:
    path, x = bake(Tied(tied=False), tmp_path / "b"), torch.randn(5, 4)
    flat, model = torch.randn(32), Tied(tied=False)
    model.a.weight = nn.Parameter(flat[:16].view(4, 4))
    model.b.weight = nn.Parameter(flat[16:].view(4, 4))
    want = model(x)
    assert_same(tp.load(path, model)(x), want)


class Cache(nn.Module):
    """A cache written at a place, a counter, a buffer that is replaced, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("cache", torch.zeros(8, 4))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        self.cache[(self.place + torch.arange(x.shape[0])) % 8] = x
        self.place += x.shape[0]
        self.mean = self.mean * 0.5 + x.mean(0)
        return self.cache.sum(0) + self.mean


@pytest.mark.parametrize("training", [False, True])
def test_buffers_that_a_call_changes_change_as_in_the_model(
    tmp_path: Path, no_grad: None, training: bool
) -> None:
    baked = Cache().train(training)
    before = copy.deepcopy(baked.state_dict())
    path = bake(baked, tmp_path / "b")
    assert_same(dict(baked.state_dict()), dict(before), "the model that was baked")
    model = Cache().train(training)
    plain = copy.deepcopy(model)
    tp.load(path, model)
    for size in (3, 4, 2):
        x = torch.randn(size, 4)
        assert_same(model(x), plain(x), f"at {size}")
        assert_same(dict(model.named_buffers()), dict(plain.named_buffers()), f"buffers at {size}")
    with pytest.raises(GuardError, match=f"training was {training}"):
        model.train(not training)(torch.randn(3, 4))
    model.train(training).norm.train(not training)
    with pytest.raises(GuardError, match=r"norm'\]\.training was"):
        model(torch.randn(3, 4))


class Act(nn.Module):
    """Reads nothing of itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


class OtherAct(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.act = Act()
        self.function = functional.silu

    def forward(self, x: Tensor) -> Tensor:
        return x + self.function(self.act(self.norm(x)))


class Layers(nn.Module):
    """Blocks alike, and one that no call reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(5))
        self.unused = Layer()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (set_to("layers.3.norm.eps", 0.5), "layers.3.norm.eps"),
        (set_to("layers.3.act", OtherAct()), "layers.3.act"),
        (set_to("layers.3.function", functional.gelu), "layers.3.function"),
        (lambda m: m.layers[3].norm.register_forward_hook(double), "layers.3.norm: forward hooks"),
    ],
)
def test_blocks_that_were_traced_once_are_compared_one_by_one(
    tmp_path: Path, no_grad: None, change: Callable[[Any], None], what: str
) -> None:
    path = bake(Layers().eval(), tmp_path / "b")
    model = Layers().eval()
    change(model)
    with pytest.raises(BundleError, match=f"fit the bundle: {what} differs"):
        tp.load(path, model)
    pruned = Layers().eval()
    del pruned.unused
    x = torch.randn(3, 4)
    want = pruned(x)
    assert_same(tp.load(path, pruned)(x), want)
