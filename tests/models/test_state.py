"""Parameters, buffers and submodules in every arrangement: changed, shared, tied, replaced, looped over."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torch_piecewise as tp
from tests.graphs import attention
from tests.models.checks import assert_same, works_unchanged
from torch_piecewise.errors import MissError

pytestmark = pytest.mark.usefixtures("no_grad")


def rows(n: int) -> tuple[Tensor]:
    return (torch.randn(n, 4),)


class Cache(nn.Module):
    """Writes each call's rows into a buffer and counts the calls in another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(16, 4), persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen[: x.shape[0]] = x
        self.calls += 1
        return self.seen.sum(0) * self.calls


def test_a_buffer_changed_in_place() -> None:
    works_unchanged(Cache(), rows, traces=2)  # to copy one row or several are two things to torch


def test_a_buffer_that_is_assigned_anew() -> None:
    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.mean = self.mean * 0.5 + x.mean(0) * 0.5
            return x - self.mean

    works_unchanged(Averaged(), rows)


def test_a_plain_tensor_attribute_changed_in_place() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.state = {"total": torch.zeros(4)}
            self.last = torch.zeros(4)

        def forward(self, x: Tensor) -> Tensor:
            self.last.copy_(x.sum(0))
            return self.state["total"].add_(self.last)

    works_unchanged(Hidden(), rows)


def test_an_attribute_that_the_model_sets() -> None:
    class Noting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.last = x * 2
            self.count = x.shape[0]
            return self.last + 1

    model = Noting()
    compiled = works_unchanged(model, rows)
    x = torch.randn(5, 4)
    assert_same((compiled(x), compiled.last, compiled.count), (model(x), model.last, model.count))


def test_batch_norm_in_training_mode_updates_its_statistics() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    works_unchanged(model, lambda n: rows(n + 1), dynamic_arg_dims={"input": 0})


def test_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 4)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids).relu())

    model = Tied()
    compiled = works_unchanged(model, lambda n: (torch.randint(0, 9, (n,)),))
    for one in (model, compiled):
        one.head.weight = nn.Parameter(torch.ones(9, 4))  # no longer tied
    ids = torch.arange(5)
    assert_same(compiled(ids), model(ids))


def test_one_layer_used_between_several_cuts() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.norm(self.layer(x))
                mixed = torch.empty_like(x)
                attention(x, x, x, mixed, "shared")
                x = x + mixed
            return x

    compiled = works_unchanged(Recurrent(), rows, splitting_ops=["tests::attention"])
    stats = tp.program_of(compiled).stats
    assert (stats.cuts, stats.pieces, stats.distinct_pieces) == (3, 4, 3)


def test_loops_over_module_lists_and_dicts_and_parameter_lists() -> None:
    class Looping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 3)})
            self.shifts = nn.ParameterList([torch.randn(4), torch.randn(4)])
            self.scales = nn.ParameterDict({"x": torch.randn(4), "y": torch.randn(4)})

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            for index, layer in enumerate(self.layers[1:]):
                x = functional.relu(layer(x)) + self.shifts[index]
            x = sum((x * scale for scale in self.scales.values()), x)
            return {name: head(x) for name, head in self.heads.items()}

    works_unchanged(Looping(), rows)


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_hooks_on_a_submodule() -> None:
    model = Hooked()
    model.first.register_forward_hook(lambda _module, _inputs, output: output * 2)
    model.second.register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,))
    works_unchanged(model, rows)


def test_hooks_on_the_model_itself() -> None:
    model = Hooked()
    model.register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,))
    model.register_forward_hook(lambda _module, _inputs, output: {"out": output})
    works_unchanged(model, rows)


def test_a_hook_that_keeps_what_passes_through() -> None:
    model = Hooked()
    kept: list[Tensor] = []
    model.first.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    reference = copy.deepcopy(model)
    compiled = tp.compile(model, backend="eager")
    for n in (3, 1, 5):
        x = torch.randn(n, 4)
        kept.clear()
        assert_same(compiled(x), reference(x))
        assert_same(kept[0], kept[1])


def test_a_hook_added_after_the_first_call_runs() -> None:
    model = Hooked()
    compiled = tp.compile(copy.deepcopy(model), backend="eager")
    x = torch.randn(3, 4)
    assert_same(compiled(x), model(x))
    for one in (compiled, model):
        one.first.register_forward_hook(lambda _module, _inputs, output: output * 2)
    assert_same(compiled(x), model(x))


def test_a_hook_added_to_the_model_itself_after_the_first_call_runs() -> None:
    model = Hooked()
    compiled = tp.compile(copy.deepcopy(model), backend="eager")
    x = torch.randn(3, 4)
    assert_same(compiled(x), model(x))
    for one in (compiled, model):
        one.register_forward_hook(lambda _module, _inputs, output: output * 2)
    assert_same(compiled(x), model(x))


def test_a_compiled_submodule_inside_an_uncompiled_model() -> None:
    model = Hooked()
    outer = copy.deepcopy(model)
    tp.compile(outer.first, backend="eager", dynamic_arg_dims={"input": 0})
    for n in (3, 1, 5):
        x = torch.randn(n, 4)
        assert_same(outer(x), model(x))
    assert tp.program_of(outer.first).stats.traces == 1


def test_a_compiled_submodule_inside_a_compiled_model() -> None:
    model = Hooked()
    outer = copy.deepcopy(model)
    tp.compile(outer.first, backend="eager", dynamic_arg_dims={"input": 0})
    tp.compile(outer, backend="eager")
    for n in (3, 1, 5):
        x = torch.randn(n, 4)
        assert_same(outer(x), model(x))
    assert tp.program_of(outer).stats.traces == 1
    assert tp.program_of(outer.first).stats.traces == 0


def test_a_compiled_submodule_under_torch_compile() -> None:
    torch._dynamo.reset()
    model = Hooked()
    outer = copy.deepcopy(model)
    tp.compile(outer.first, backend="eager", dynamic_arg_dims={"input": 0})
    compiled = torch.compile(outer, backend="eager")
    x = torch.randn(3, 4)
    assert_same(compiled(x), model(x))


def test_a_model_saved_loaded_and_copied_after_it_was_compiled() -> None:
    model = Hooked()
    compiled = tp.compile(copy.deepcopy(model), backend="eager")
    x = torch.randn(3, 4)
    assert_same(compiled(x), model(x))
    fresh = Hooked()
    fresh.load_state_dict(compiled.state_dict())
    assert_same(fresh(x), model(x))
    assert_same(copy.deepcopy(compiled)(x), model(x))
    with torch.no_grad():
        for one in (compiled, model):
            one.load_state_dict({name: torch.ones_like(tensor) for name, tensor in one.state_dict().items()})
    assert_same(compiled(x), model(x))


def test_weights_assigned_by_load_state_dict_are_used_at_once() -> None:
    model = Hooked()
    compiled = tp.compile(copy.deepcopy(model), backend="eager")
    x = torch.randn(3, 4)
    assert_same(compiled(x), model(x))
    new = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    for one in (compiled, model):
        one.load_state_dict(new, assign=True)
    assert_same(compiled(x), model(x))


def test_weights_swapped_through_data_are_used_at_once() -> None:
    model = Hooked()
    compiled = tp.compile(copy.deepcopy(model), backend="eager")
    x = torch.randn(3, 4)
    assert_same(compiled(x), model(x))
    new = torch.randn(4, 4)
    for one in (compiled, model):
        one.first.weight.data = new.clone()
    assert_same(compiled(x), model(x))


def test_a_parametrized_weight() -> None:
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU())
    works_unchanged(model, rows, dynamic_arg_dims={"input": 0})


def test_a_subclass_that_overrides_call() -> None:
    class Called(Hooked):
        def __call__(self, x: Tensor) -> Any:
            return super().__call__(x) * 3

    works_unchanged(Called(), rows)


def test_a_replaced_submodule_without_parameters_is_noticed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    compiled = tp.compile(copy.deepcopy(model), backend="eager", dynamic_arg_dims={"input": 0})
    x = torch.randn(3, 4)
    assert_same(compiled(x), model(x))
    for one in (compiled, model):
        one[1] = nn.Sigmoid()
    assert_same(compiled(x), model(x))
    for one in (compiled, model):
        one.append(nn.Tanh())
    assert_same(compiled(x), model(x))


SHIFT = torch.zeros(4)


def shifted(x: Tensor) -> Tensor:
    return (x + SHIFT) * SHIFT.shape[0]


def test_a_global_tensor_replaced_by_one_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def inputs(shift: Tensor) -> tuple[Tensor]:
        monkeypatch.setitem(shifted.__globals__, "SHIFT", shift)
        return rows(3)

    kinds = [torch.ones(4), torch.zeros(4), torch.ones(4).double(), torch.ones(1), torch.ones(8)[::2]]
    works_unchanged(shifted, inputs, kinds, traces=4)


class Plain(nn.Module):
    """Holds a tensor that is no parameter and no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale * self.scale.shape[0]


class Engine:
    """No module itself; ``step`` is what people compile of it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.scale = torch.ones(4)

    def step(self, x: Tensor) -> Tensor:
        return self.model(x) * self.scale * self.scale.shape[0]


@pytest.mark.parametrize("kind", [Plain, Engine])
def test_a_plain_tensor_attribute_replaced_by_one_of_another_kind(kind: type[Any]) -> None:
    one = Plain() if kind is Plain else Engine(nn.Linear(4, 4))
    other = copy.deepcopy(one)
    if kind is Plain:
        call, program = tp.compile(one, backend="eager"), one
    else:
        call = program = tp.compile(one.step, backend="eager")
    for scale in (torch.ones(4), torch.randn(4), torch.ones(1), torch.randn(4).double(), torch.randn(4)):
        one.scale = other.scale = scale
        x = torch.randn(3, 4)
        assert_same(call(x), other(x) if kind is Plain else other.step(x))
    assert tp.program_of(program).stats.traces == 3


def test_a_model_that_an_object_holds_is_watched_like_one_that_is_compiled_itself() -> None:
    one = Engine(nn.Linear(4, 4))
    other = copy.deepcopy(one)
    step = tp.compile(one.step, backend="eager")
    x = torch.randn(3, 4)
    assert_same(step(x), other.step(x))
    for engine in (one, other):
        engine.model.weight.mul_(2)
    assert_same(step(x), other.step(x))
    assert tp.program_of(step).stats.traces == 1
    for engine in (one, other):
        engine.model.double()
        engine.scale = engine.scale.double()
    assert_same(step(x.double()), other.step(x.double()))
    with pytest.raises(RuntimeError, match="same dtype"):
        step(x)


def test_two_instances_of_one_class_do_not_meet() -> None:
    one, two = Hooked(), Hooked()
    first, second = (tp.compile(copy.deepcopy(model), backend="eager") for model in (one, two))
    x = torch.randn(3, 4)
    assert_same((first(x), second(x), first(x)), (one(x), two(x), one(x)))


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


def test_a_number_that_the_model_itself_changes_is_never_stale() -> None:
    model, compiled = Counting(), tp.compile(Counting(), backend="eager")
    for _ in range(5):
        x = torch.randn(3)
        assert_same(compiled(x), model(x))
        assert compiled.calls == model.calls


class SaysItEqualsAll(torch.nn.Linear):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = torch.nn.Linear.__hash__


def test_a_replaced_submodule_that_says_it_equals_all_others_is_noticed() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = SaysItEqualsAll(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = tp.compile(Wrapper().eval(), backend="eager")
    x = torch.randn(3, 4)
    assert torch.equal(model(x), torch.nn.functional.linear(x, model.inner.weight, model.inner.bias))
    model.inner = SaysItEqualsAll(4, 4)
    assert torch.equal(model(x), torch.nn.functional.linear(x, model.inner.weight, model.inner.bias))


FACTOR = 2.0
TABLE = {"shift": 1.0}


class ReadsGlobals(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * FACTOR + TABLE["shift"]


def test_plain_globals_that_change_while_the_process_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"backend": "tests.kept_compiler.KeptEager", "cache_dir": tmp_path}
    model = tp.compile(ReadsGlobals(), dynamic_arg_dims={"x": 0}, **settings)
    x = torch.randn(3, 4)
    assert torch.equal(model(x), x * 2 + 1)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert torch.equal(model(x), x * 3 + 1)
    monkeypatch.setitem(TABLE, "shift", 5.0)
    assert torch.equal(model(x), x * 3 + 5)
    # A later start takes from the store only what holds for the values of now.
    later = tp.compile(ReadsGlobals(), dynamic_arg_dims={"x": 0}, **settings)
    assert torch.equal(later(x), x * 3 + 5)
    monkeypatch.setitem(TABLE, "shift", 7.0)
    assert torch.equal(later(x), x * 3 + 7)


def test_a_miss_that_is_an_error_names_the_file_that_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "edited_later.py"
    file.write_text("def twice(x):\n    return x * 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    twice = importlib.import_module("edited_later").twice

    class Calls(torch.nn.Module):
        def forward(self, x: Tensor) -> Any:
            return twice(x)

    settings: dict[str, Any] = {"backend": "tests.kept_compiler.KeptEager", "cache_dir": tmp_path / "root"}
    tp.compile(Calls(), dynamic_arg_dims={"x": 0}, **settings)(torch.randn(3, 4))
    file.write_text("# edited\n" + file.read_text())
    later = tp.compile(Calls(), dynamic_arg_dims={"x": 0}, on_miss="error", **settings)
    with pytest.raises(MissError, match=r"sources.*edited_later"):
        later(torch.randn(3, 4))
