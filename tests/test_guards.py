"""What each call is checked against under each ``guards``, and what a violated guard leads to."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from tests.graphs import Stack
from torch_piecewise.errors import ConfigError, DynamicDimError, GuardError

pytestmark = pytest.mark.usefixtures("no_grad")

FACTOR = {"now": 2.0}


class Scaled(torch.nn.Module):
    """Reads an attribute that no cheap check looks at, a global, and its input's features."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.factor = 3.0

    def forward(self, x: Tensor, power: int = 1) -> Tensor:
        return self.inner(x) ** power * self.factor * FACTOR["now"]


def scaled(**fields: Any) -> Any:
    return tp.compile(Scaled(), **{"backend": "eager", "dynamic_arg_dims": {"x": 0}, **fields})


def uncompiled(model: Any, *args: Any) -> Tensor:
    result: Tensor = model.forward(*args)
    return result


def rows(n: int = 3) -> Tensor:
    return torch.randn(n, 4)


# -- messages


def test_messages_tell_what_tensors_are_and_not_what_they_hold() -> None:
    def add(x: Tensor, opt: Any = None) -> Tensor:
        return x + (1 if opt is None else 2)

    call = tp.compile(add, backend="eager", on_guard_failure="error", dynamic_arg_dims={"x": 0})
    call(rows())
    other = torch.randn(2, 3)
    for given, shown in ((other, "{}"), ([other, 1], "[{}, 1]"), ({"k": (other,)}, "{{'k': ({},)}}")):
        with pytest.raises(GuardError) as caught:
            call(rows(), given)
        told = shown.format("a tensor of torch.float32, shape (2, 3), cpu")
        assert caught.value.got is not None and told in caught.value.got
        assert "tensor(" not in str(caught.value)


# -- full


@pytest.mark.parametrize("first", [5, 1, 0])
def test_full_guards_accept_every_size_of_a_dynamic_dim(first: int) -> None:
    model = scaled(guards="full")
    for n in (first, 2, 9, 300):
        x = rows(n)
        assert torch.equal(model(x), uncompiled(model, x))
    assert tp.program_of(model).stats.traces <= 2  # Dynamo's own may treat 0 and 1 apart


CHANGES: dict[str, tuple[Callable[[Any, pytest.MonkeyPatch], None], str]] = {
    "attribute": (lambda model, _patch: setattr(model, "factor", 5.0), "factor"),
    "global": (lambda _model, patch: patch.setitem(FACTOR, "now", 7.0), "FACTOR"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_full_guards_notice_what_the_cheap_ones_may_not(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, _named = CHANGES[change]
    full, cheap = scaled(guards="full"), scaled()
    x = rows()
    for model in (full, cheap):
        model(x)
    for model in (full, cheap):
        make(model, monkeypatch)
    with tp.program_of(full).counters.expect(recompiles=1):
        assert torch.equal(full(x), uncompiled(full, x))
    # As documented: an attribute changed by hand is the one of the two that only "full" notices.
    assert torch.equal(cheap(x), uncompiled(cheap, x)) is (change == "global")


@pytest.mark.parametrize("change", CHANGES)
def test_a_violated_full_guard_is_named(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, named = CHANGES[change]
    model = scaled(guards="full", on_guard_failure="error")
    model(rows())
    make(model, monkeypatch)
    with pytest.raises(GuardError, match=f"(?s)not one the model was traced for.*got: .*{named}"):
        model(rows())


def test_full_guards_check_the_inputs_as_well() -> None:
    model = scaled(guards="full")
    for args in ((rows(),), (rows(), 2), (rows().double().float(), 1)):
        assert torch.equal(model(*args), uncompiled(model, *args))
    assert tp.program_of(model).stats.traces == 2


def test_full_guards_of_a_closure_see_its_variables() -> None:
    factor = 2.0

    def call(x: Tensor, *rest: Tensor, **more: Any) -> Tensor:
        return x * factor + len(rest) + more.get("shift", 0)

    compiled = tp.compile(call, backend="eager", guards="full")
    x = rows()
    assert torch.equal(compiled(x), call(x))
    factor = 4.0
    assert torch.equal(compiled(x), call(x))
    assert torch.equal(compiled(x, x, shift=3), call(x, x, shift=3))


def test_full_guards_notice_a_replaced_submodule_and_parameter() -> None:
    model = scaled(guards="full")
    x = rows()
    model(x)
    model.inner = torch.nn.Linear(4, 4)
    assert torch.equal(model(x), uncompiled(model, x))
    model.inner.weight = torch.nn.Parameter(torch.randn(4, 4))
    assert torch.equal(model(x), uncompiled(model, x))


@pytest.mark.inductor
def test_full_guards_are_not_kept_but_pieces_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "torch_piecewise")
    starts = []
    for _start in range(2):
        model = scaled(guards="full", cache_dir=str(tmp_path), backend="inductor")
        model(rows())
        starts.append(tp.program_of(model))
    assert [one.stats.traces for one in starts] == [1, 1]
    assert [one.stats.artifacts_compiled for one in starts] == [1, 0]
    assert (
        "program 'Scaled' (backbone) is traced in each process: guards='full' compares objects of this "
        "process, which cannot be kept; its compiled pieces are kept all the same"
    ) in caplog.messages


@pytest.mark.parametrize("on_miss", ["error", "eager"])
def test_full_guards_with_a_start_that_may_not_trace_are_refused(on_miss: str) -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)guards and on_miss contradict each other.*so each process traces"
    ):
        tp.Config(guards="full", on_miss=on_miss)


# -- none


def test_without_guards_nothing_is_compared() -> None:
    """Wrong on purpose: the answers are those of the first call's kind, which is what was promised."""
    model = scaled(guards="none")
    x = rows()
    first = model(x)
    assert torch.equal(first, uncompiled(model, x))
    model.factor = 9.0
    model.inner.register_forward_hook(lambda *_: torch.zeros(3, 4))
    assert torch.equal(model(x, 2), first)
    entry = tp.program_of(model).entries[0]
    assert "if not" not in entry.source
    assert tp.program_of(model).stats.traces == 1


def test_without_guards_every_size_is_still_served_by_its_own_range() -> None:
    stack = tp.compile(
        Stack(2).eval(),
        backend="eager",
        guards="none",
        splitting_ops=["tests::attention"],
        dynamic_arg_dims={"ids": 0},
        compile_ranges_endpoints=[4],
        compile_sizes=[1],
    )
    with tp.program_of(stack).counters.expect(artifacts_compiled=3 * 3, graphs_captured=1):
        for n in (3, 1, 4, 5, 100):
            ids = torch.randint(0, 50, (n,))
            assert torch.equal(stack(ids), stack.forward(ids))


def test_without_guards_a_replaced_parameter_is_used() -> None:
    model = scaled(guards="none")
    x = rows()
    model(x)
    model.inner.weight = torch.nn.Parameter(torch.randn(4, 4))
    assert torch.equal(model(x), uncompiled(model, x))


def test_without_guards_a_branch_on_the_size_is_not_looked_at_again() -> None:
    call = tp.compile(branching, backend="eager", guards="none")
    call(torch.randn(20))
    x = torch.randn(5)
    assert torch.equal(call(x), x * 2)  # the branch of 20
    assert tp.program_of(call).stats.traces == 1


@pytest.mark.inductor
def test_without_guards_a_warm_start_compares_nothing_either(tmp_path: Path) -> None:
    for traces in (1, 0):
        call = tp.compile(branching, guards="none", cache_dir=str(tmp_path))
        for n in (20, 5):
            x = torch.randn(n)
            assert torch.equal(call(x), x * 2)
        assert tp.program_of(call).stats.traces == traces


# -- what a violated guard leads to


@pytest.mark.parametrize("guards", ["inputs", "full"])
@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ((torch.randn(3, 4).double(),), "x was torch.float32, 2-d, shape .* got torch.float64"),
        ((torch.randn(3, 4), 2), "power was 1, got 2"),
        ((torch.randn(3, 5)[:, :4],), "x was .*, strides .4, 1., .* got torch.float32, .* strides .5, 1."),
    ],
)
def test_a_violated_guard_is_an_error_or_a_new_trace(guards: str, args: Any, reason: str) -> None:
    strict = scaled(guards=guards, on_guard_failure="error")
    strict(rows())
    message = (
        f"(?s)This call is not one the model was traced for.*got: {reason}.*on_guard_failure='recompile'"
    )
    with pytest.raises(GuardError, match=message):
        strict(*args)
    if args[0].dtype is torch.float32:
        lenient = scaled(guards=guards)
        lenient(rows())
        with tp.program_of(lenient).counters.expect(graphs_captured=1, recompiles=1):
            assert torch.equal(lenient(*args), uncompiled(lenient, *args))


@pytest.mark.parametrize("guards", ["inputs", "full"])
def test_a_size_that_takes_another_branch_is_an_error_or_a_new_trace(guards: str) -> None:
    strict = tp.compile(branching, backend="eager", guards=guards, on_guard_failure="error")
    strict(torch.randn(20))
    with pytest.raises(GuardError) as caught:
        strict(torch.randn(5))
    line = f"{__file__}:{branching.__code__.co_firstlineno + 1}"
    assert str(caught.value) == (
        "This call is not one the model was traced for\n"
        f"  expected: x.size(0) > 10 (asked by {line} (return x * 2 if x.shape[0] > 10 else x * 3))\n"
        "  got: x.size(0)=5\n"
        "  to do: call it as it was first called, or set on_guard_failure='recompile'"
    )
    lenient = tp.compile(branching, backend="eager", guards=guards)
    for n in (20, 5):
        x = torch.randn(n)
        assert torch.equal(lenient(x), branching(x))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("mark", ["mark_dynamic", "maybe_mark_dynamic", "mark_static"])
def test_marks_that_a_tensor_has_from_another_compile_mean_nothing(mark: str, dim: int) -> None:
    def doubled(x: Tensor) -> Tensor:
        return x * 2

    call = tp.compile(doubled, backend="eager", guards="full", dynamic_arg_dims={"x": 0})
    for n, marked in ((5, True), (6, False), (7, True)):
        x = torch.randn(n, 3)
        if marked:
            getattr(torch._dynamo, mark)(x, dim)
        assert torch.equal(call(x), x * 2)
    assert tp.program_of(call).counters["graphs_captured"] == 1


def test_an_error_on_failure_needs_guards_that_can_fail() -> None:
    with pytest.raises(ConfigError, match="on_guard_failure and guards contradict each other"):
        tp.Config(guards="none", on_guard_failure="error")


# -- evaluate_guards


def branching(x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] > 10 else x * 3


def special_one(x: Tensor) -> Tensor:
    return x + 1 if x.shape[0] == 1 else x * 3


@pytest.mark.parametrize("guards", ["inputs", "full"])
def test_an_evaluated_guard_on_a_size_is_an_error_that_shows_the_line(guards: str) -> None:
    call = tp.compile(branching, backend="eager", guards=guards, evaluate_guards=True)
    call(torch.randn(20))
    call(torch.randn(11))
    with pytest.raises(GuardError) as caught:
        call(torch.randn(5))
    line = f"{__file__}:{branching.__code__.co_firstlineno + 1}"
    assert str(caught.value) == (
        "The model's own code does not treat all sizes of a dynamic dim alike\n"
        f"  expected: x.size(0) > 10 (asked by {line} (return x * 2 if x.shape[0] > 10 else x * 3))\n"
        "  got: x.size(0)=5\n"
        "  to do: change that line, or leave evaluate_guards out to have such sizes traced apart"
    )


def checked(x: Tensor) -> Tensor:
    torch._check(x.shape[0] >= 5)
    return x * 2


def at_least(x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] >= 5 else x * 3


@pytest.mark.parametrize("function", [checked, at_least])
def test_an_evaluated_guard_shows_the_line_too_where_torch_kept_it_as_a_bound(
    function: Callable[[Tensor], Tensor],
) -> None:
    call = tp.compile(function, backend="eager", evaluate_guards=True)
    call(torch.randn(20))
    line = f"{__file__}:{function.__code__.co_firstlineno + 1}"
    with pytest.raises(GuardError) as caught:
        call(torch.randn(4))
    expected = caught.value.expected
    assert expected is not None
    assert expected.startswith(f"x.size(0) >= 5 (asked by {line} (")


def test_a_file_in_any_folder_is_named_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch cuts a letter from a path that shares no folder with torch's own."""
    file = tmp_path / "fixes_its_size.py"
    file.write_text("def fixed(x):\n    return x.view(5).sin()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    fixed = importlib.import_module("fixes_its_size").fixed
    call = tp.compile(fixed, backend="eager", dynamic_arg_dims={"x": 0})
    with pytest.raises(DynamicDimError) as caught:
        call(torch.randn(5))
    assert caught.value.got == f"the trace found that it must be 5, at {file}:2 (return x.view(5).sin())"


def test_evaluated_guards_leave_other_differences_to_on_guard_failure() -> None:
    call = tp.compile(branching, backend="eager", evaluate_guards=True)
    call(torch.randn(20))
    x = torch.randn(5).double()
    assert torch.equal(call(x), branching(x))


@pytest.mark.parametrize("dynamic_shapes", ["backed", "unbacked", "backed_size_oblivious"])
@pytest.mark.parametrize("first", [5, 1, 0])
def test_what_torch_adds_for_0_and_1_is_not_counted_against_the_model(
    dynamic_shapes: str, first: int
) -> None:
    def plain(x: Tensor) -> Tensor:
        return torch.sin(x) * x.shape[0]

    call = tp.compile(plain, backend="eager", evaluate_guards=True, dynamic_shapes=dynamic_shapes)
    for n in (first, 5, 0, 1, 2, 40):
        x = torch.randn(n, 3)
        assert torch.equal(call(x), plain(x))


@pytest.mark.parametrize("first", [5, 1])
def test_a_model_that_asks_for_1_itself_is_shown(first: int) -> None:
    call = tp.compile(special_one, backend="eager", evaluate_guards=True)
    with pytest.raises(GuardError, match=r"(?s)Ne\(x.size\(0\), 1\) .asked by .*got: x.size\(0\)=1"):
        for n in (first, 1):
            call(torch.randn(n))


def test_evaluation_without_guards_is_refused() -> None:
    with pytest.raises(ConfigError, match="evaluate_guards and guards contradict each other"):
        tp.Config(guards="none", evaluate_guards=True)


def test_a_key_that_only_some_calls_have_is_looked_for_before_it_is_read(no_grad: None) -> None:
    def pick(x: torch.Tensor, options: dict[str, object]) -> torch.Tensor:
        return x * options["left"] if options["side"] == "left" else x + options["right"]

    call = tp.compile(pick, backend="eager", disable_cache=True, dynamic_arg_dims={"x": 0}, splitting_ops=[])
    x, y = torch.randn(3, 4), torch.randn(4)
    assert torch.equal(call(x, {"side": "left", "left": y}), x * y)
    assert torch.equal(call(x, {"side": "right", "right": y}), x + y)
    assert torch.equal(call(x, {"side": "left", "left": y}), x * y)
    with pytest.raises(KeyError, match="right"):
        call(x, {"side": "right"})
