"""tp.compile as people use it, with the eager compiler: equal to the uncompiled model, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from tests.graphs import Stack
from torch_piecewise.compiled import Stats
from torch_piecewise.errors import (
    ConfigError,
    DynamicDimError,
    GraphBreakError,
    GuardError,
)

pytestmark = pytest.mark.usefixtures("no_grad")


def compiled_stack(depth: int = 3, **fields: Any) -> tuple[Stack, Stack]:
    model = Stack(depth).eval()
    reference = copy.deepcopy(model)
    fields = {
        "backend": "eager",
        "splitting_ops": ["tests::attention"],
        "dynamic_arg_dims": {"ids": 0},
    } | fields
    return tp.compile(model, **fields), reference


def ids(count: int) -> Tensor:
    return torch.randint(0, 50, (count,))


def assert_same(model: Any, reference: Any, *inputs: Tensor) -> None:
    assert torch.equal(model(*inputs), reference(*inputs))


def test_compiling_is_in_place_and_keeps_what_the_model_is() -> None:
    model = Stack(2)
    keys = list(model.state_dict())
    assert tp.compile(model, backend="eager", dynamic_arg_dims={"ids": 0}) is model
    assert isinstance(model, Stack)
    assert list(model.state_dict()) == keys


def test_pieces_and_distinct_pieces_are_counted() -> None:
    model, _ = compiled_stack(depth=6)
    with tp.program_of(model).counters.expect(graphs_captured=1, pieces=7, cuts=6, distinct_pieces=3):
        model(ids(5))
    stats = tp.program_of(model).stats
    assert (stats.pieces, stats.cuts, stats.distinct_pieces) == (7, 6, 3)


@pytest.mark.parametrize("first", [1, 2, 5, 40])
def test_one_trace_serves_every_size_whatever_size_came_first(first: int) -> None:
    model, reference = compiled_stack(compile_ranges_endpoints=[4, 16], compile_sizes=[1, 8])
    with tp.program_of(model).counters.expect(graphs_captured=1):
        for size in (first, 1, 2, 3, 4, 5, 8, 16, 17, 200, 0):
            assert_same(model, reference, ids(size))


def test_each_distinct_piece_is_compiled_once_per_range_and_exact_size() -> None:
    model, _ = compiled_stack(depth=5, compile_ranges_endpoints=[4, 16], compile_sizes=[1])
    with tp.program_of(model).counters.expect(artifacts_compiled=3 * 4):
        for size in (1, 3, 10, 100):
            model(ids(size))


def test_the_statistics_are_one_line_for_people() -> None:
    stats = Stats(1, 5, 4, 3, 6, 2.25, {"compile": 2.25})
    assert str(stats) == "5 pieces, 3 distinct, 4 cuts; 1 trace, 6 compiled in 2.2 s"


def test_a_replaced_parameter_is_used_at_once() -> None:
    model, reference = compiled_stack()
    assert_same(model, reference, ids(4))
    for one in (model, reference):
        one.norm.weight = torch.nn.Parameter(torch.full((16,), 3.0))
    assert_same(model, reference, ids(4))


def test_a_parameter_changed_in_place_is_used_at_once() -> None:
    model, reference = compiled_stack()
    assert_same(model, reference, ids(4))
    model.norm.weight.mul_(2)
    reference.norm.weight.mul_(2)
    assert_same(model, reference, ids(4))


def test_a_replaced_submodule_is_noticed() -> None:
    model, reference = compiled_stack()
    assert_same(model, reference, ids(4))
    with tp.program_of(model).counters.expect(recompiles=1):
        for one in (model, reference):
            one.norm = torch.nn.LayerNorm(16)
        assert_same(model, reference, ids(4))


def test_a_model_moved_to_another_dtype_is_noticed() -> None:
    model, reference = compiled_stack()
    assert_same(model, reference, ids(4))
    assert_same(model.double(), reference.double(), ids(4))
    assert model(ids(4)).dtype is torch.float64


def test_training_and_evaluation_do_not_share_a_trace() -> None:
    class Dropped(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.dropout(x, 0.5, self.training)

    model = tp.compile(Dropped().eval(), backend="eager")
    x = torch.ones(1000)
    assert torch.equal(model(x), x)
    assert (model.train()(x) == 0).any()


class Branching(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            return x + 1
        return x * 2 if x.shape[0] > 10 else x * 3


@pytest.mark.parametrize("order", [(1, 5, 20, 1), (20, 1, 5, 2), (5, 1, 11, 10)])
@pytest.mark.parametrize("dynamic_shapes", ["backed_size_oblivious", "backed"])
def test_a_branch_on_the_size_never_gives_a_wrong_answer(order: tuple[int, ...], dynamic_shapes: str) -> None:
    model = tp.compile(Branching(), backend="eager", dynamic_shapes=dynamic_shapes)
    for size in order:
        x = torch.randn(size)
        assert torch.equal(model(x), Branching()(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x.double(),), "x was torch.float32.*got torch.float64"),
        (lambda x: (x[None],), "x was torch.float32, 2-d.*got torch.float32, shape \\(1, 3, 4\\)"),
        (lambda x: (x.repeat(1, 2),), "shape \\(.*, 4\\).*got torch.float32, shape \\(3, 8\\)"),
        (lambda x: (x.repeat(1, 2)[:, ::2],), "strides.*got .*strides \\(8, 2\\)"),
        (lambda x: (x, 3.0), "scale was 2.0, got 3.0"),
        (lambda x: (x, 2.0, x), "extra was None, got a tensor of torch.float32, shape"),
    ],
)
def test_a_call_of_another_kind_is_an_error_where_recompiling_is_not_wanted(
    change: Any, message: str
) -> None:
    def scaled(x: Tensor, scale: float = 2.0, extra: Tensor | None = None) -> Tensor:
        return x * scale if extra is None else x + extra

    x = torch.randn(3, 4)
    strict = tp.compile(scaled, backend="eager", on_guard_failure="error")
    assert torch.equal(strict(x), x * 2)
    with pytest.raises(GuardError, match=f"(?s)not one the model was traced for.*{message}"):
        strict(*change(x))
    lenient = tp.compile(scaled, backend="eager")
    lenient(x)
    assert torch.equal(lenient(*change(x)), scaled(*change(x)))


def test_grad_mode_is_part_of_a_trace() -> None:
    model, _reference = compiled_stack(splitting_ops=[])
    model.requires_grad_(True)
    assert not model(ids(3)).requires_grad
    linear = tp.compile(torch.nn.Linear(3, 3), backend="eager", dynamic_arg_dims={"input": 0})
    x = torch.randn(2, 3)
    linear(x)
    with torch.enable_grad():
        linear(x).sum().backward()
    assert linear.weight.grad is not None


def test_two_symbols_stay_apart_and_a_shared_one_is_checked() -> None:
    def outer(x: Tensor, y: Tensor) -> Tensor:
        return x[:, None] * y[None, :]

    free = tp.compile(outer, backend="eager", dynamic_arg_dims={"x": 0, "y": 0})
    for rows, columns in ((3, 3), (2, 5), (1, 7), (4, 1)):
        x, y = torch.randn(rows), torch.randn(columns)
        assert torch.equal(free(x, y), outer(x, y))
    assert tp.program_of(free).counters["graphs_captured"] == 1
    shared = tp.compile(
        outer, backend="eager", dynamic_arg_dims={"x": {0: "n"}, "y": {0: "n"}}, on_guard_failure="error"
    )
    shared(torch.randn(3), torch.randn(3))
    with pytest.raises(GuardError, match=r"(?s)not one the model was traced for.*got: "):
        shared(torch.randn(3), torch.randn(4))
    with pytest.raises(DynamicDimError, match="share the symbol 'n' differ in size"):
        tp.compile(outer, backend="eager", dynamic_arg_dims={"x": {0: "n"}, "y": {0: "n"}})(
            torch.randn(3), torch.randn(4)
        )


def test_dispatch_on_chooses_which_dim_ranges_are_about() -> None:
    def both(x: Tensor, y: Tensor) -> Tensor:
        return x.sum() + y

    call = tp.compile(
        both,
        backend="eager",
        dynamic_arg_dims={"x": 0, "y": 0},
        dispatch_on="y.0",
        compile_sizes=[2, 3],
    )
    with tp.program_of(call).counters.expect(artifacts_compiled=3):
        for n in (2, 3, 9):
            x, y = torch.randn(100), torch.randn(n)
            assert torch.equal(call(x, y), both(x, y))


def test_a_function_without_dynamic_dims_is_compiled_for_its_one_size() -> None:
    call = tp.compile(lambda_free, backend="eager", dynamic_arg_dims={})
    x = torch.randn(4)
    assert torch.equal(call(x), lambda_free(x))
    assert torch.equal(call(x[:2]), lambda_free(x[:2]))
    assert tp.program_of(call).stats.traces == 2


def lambda_free(x: Tensor) -> Tensor:
    return x.sigmoid() + 1


def test_restore_gives_the_model_its_own_call_back() -> None:
    model, reference = compiled_stack()
    model(ids(3))
    handle = tp.program_of(model)
    handle.restore()
    assert_same(model, reference, ids(3))
    with pytest.raises(ConfigError, match="This model is not compiled"):
        tp.program_of(model)


def test_a_class_decorator_compiles_each_instance() -> None:
    @tp.compile(backend="eager", dynamic_arg_dims={"x": 0})
    class Doubled(torch.nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = by

        def forward(self, x: Tensor) -> Tensor:
            return x * self.by

    x = torch.randn(3)
    assert torch.equal(Doubled(2.0)(x), x * 2)
    assert torch.equal(Doubled(3.0)(x), x * 3)


def test_a_method_decorator_compiles_for_each_instance() -> None:
    class Engine:
        def __init__(self, by: float) -> None:
            self.weight = torch.full((3,), by)

        @tp.compile(backend="eager", dynamic_arg_dims={"x": 0})
        def step(self, x: Tensor) -> Tensor:
            return x * self.weight

    x = torch.randn(2, 3)
    first, second = Engine(2.0), Engine(3.0)
    assert torch.equal(first.step(x), x * 2)
    assert torch.equal(second.step(x), x * 3)
    first.weight = torch.full((3,), 5.0)
    assert torch.equal(first.step(x), x * 5)


def test_arguments_named_like_our_own_variables_are_fine() -> None:
    def named(
        state: Tensor, key: Tensor, run: float = 1.0, *, owner: float = 2.0, tail: float = 3.0
    ) -> Tensor:
        return state + key * run * owner * tail

    call = tp.compile(named, backend="eager")
    x = torch.randn(3)
    assert torch.equal(call(x, x, owner=5.0), named(x, x, owner=5.0))


def test_star_arguments_reach_the_model() -> None:
    def starred(x: Tensor, *more: Tensor, **named: Tensor) -> Tensor:
        return x + more[0] * named["y"]

    call = tp.compile(starred, backend="eager", dynamic_arg_dims={})
    x = torch.randn(3)
    assert torch.equal(call(x, x + 1, y=x + 2), starred(x, x + 1, y=x + 2))


def test_a_closure_is_read_at_each_call() -> None:
    weight = torch.ones(3)

    def closed(x: Tensor) -> Tensor:
        return x * weight

    call = tp.compile(closed, backend="eager")
    x = torch.randn(2, 3)
    assert torch.equal(call(x), x)
    weight = torch.full((3,), 4.0)
    assert torch.equal(call(x), x * 4)


def test_python_side_effects_happen_on_every_call() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor, log: list[Tensor]) -> Tensor:
            y = x + 1
            log.append(y)
            return y * 2

    model = tp.compile(Counting(), backend="eager", guards="inputs")
    for count in range(1, 4):
        log: list[Tensor] = []
        x = torch.randn(count)
        model(x, log)
        assert torch.equal(log[0], x + 1)


class Breaking(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        print("hello")
        return y


def test_a_graph_break_names_file_line_reason_and_what_to_change() -> None:
    model = tp.compile(Breaking(), backend="eager")
    with pytest.raises(GraphBreakError) as caught:
        model(torch.randn(3))
    text = str(caught.value)
    assert "The model breaks the graph at" in text
    assert "test_compile.py" in text
    assert 'print("hello")' in text
    assert "to do:" in text


def test_with_torch_compile_each_graph_gets_a_backend_of_its_own() -> None:
    torch._dynamo.reset()
    model = torch.compile(Breaking(), backend="piecewise", options={"backend": "eager"})
    x = torch.randn(3)
    assert torch.equal(model(x), x + 1)


def test_torch_compile_takes_config_fields_as_options() -> None:
    torch._dynamo.reset()
    stack = Stack(3).eval()
    model = torch.compile(
        stack,
        backend="piecewise",
        dynamic=True,
        options={"backend": "eager", "splitting_ops": ["tests::attention"], "compile_ranges_endpoints": [8]},
    )
    for size in (3, 9, 20):
        x = ids(size)
        assert torch.equal(model(x), stack(x))


def test_an_argument_the_model_lacks_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"names an argument that Stack.forward lacks(?s:.*)did you mean ids"
    ):
        tp.compile(Stack(1), backend="eager", dynamic_arg_dims={"idx": 0})


def test_a_dynamic_dim_out_of_range_is_named() -> None:
    model = tp.compile(Stack(1), backend="eager", dynamic_arg_dims={"ids": 3})
    with pytest.raises(DynamicDimError, match="Dynamic dim 3 of argument 'ids' is out of range"):
        model(ids(3))


def test_without_annotations_the_error_shows_how_to_write_dims() -> None:
    def bare(x, n):  # type: ignore[no-untyped-def]
        return x

    with pytest.raises(ConfigError, match=r"dynamic_arg_dims=\{'x': 0\}"):
        tp.compile(bare, backend="eager")


def test_a_dim_that_the_model_fixes_is_an_error_with_the_line() -> None:
    def fixed(x: Tensor) -> Tensor:
        return x + torch.ones(5)

    call = tp.compile(fixed, backend="eager")
    with pytest.raises(
        DynamicDimError, match=r"Dim 0 of argument 'x'.*fixes its size at 5(?s:.*)test_compile"
    ):
        call(torch.randn(5))


def test_a_thing_that_is_no_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="This object cannot be compiled"):
        tp.compile(3, backend="eager")


def test_mode_none_runs_the_model_as_it_is() -> None:
    model = tp.compile(Breaking(), mode="none")
    x = torch.randn(3)
    assert torch.equal(model(x), x + 1)


def test_an_error_of_an_eager_piece_prints_nothing_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def picked(x: Tensor, index: Tensor) -> Tensor:
        return x[index]

    call = tp.compile(picked, backend="eager", dynamic_arg_dims={"x": 0}, disable_cache=True)
    call(torch.randn(3), torch.tensor([0, 1]))
    with pytest.raises(IndexError):
        call(torch.randn(3), torch.tensor([0, 9]))
    assert capsys.readouterr().err == ""
