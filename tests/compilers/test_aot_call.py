"""What surrounds a piece's machine code: checked by running the rest of the graph in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from tests.models.checks import assert_same
from torch_piecewise.compilers.aot_call import CallPlan, plan_call
from torch_piecewise.compilers.inductor_inputs import fake_inputs
from torch_piecewise.errors import CompileError
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import UNBOUNDED, Range
from torch_piecewise.relations import FUNCTIONS

pytestmark = pytest.mark.usefixtures("no_grad")


def piece_of(function: Callable[..., Any], *args: Any, **dims: Any) -> Piece:
    """The one piece of a function."""
    compiled = tp.compile(
        function, backend="eager", disable_cache=True, splitting_ops=[], dynamic_arg_dims=dims
    )
    compiled(*args)
    piece = tp.program_of(compiled).entries[0].program.pieces.piece("submod_0")
    assert isinstance(piece, Piece)
    return piece


def planned(piece: Piece, range: Range | None = None) -> CallPlan:
    return plan_call(piece.graph, fake_inputs(piece, range or Range(1, UNBOUNDED)))


def runnable(plan: CallPlan) -> Callable[..., tuple[Any, ...]]:
    """The piece with the rest of its graph run as the machine code would be: tensors in, tensors out."""

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        assert plan.graph is not None
        assert all(isinstance(value, Tensor) for value in inputs)
        sized = [
            x.item() if isinstance(v, torch.SymInt) else x for x, v in zip(inputs, plan.values, strict=True)
        ]
        return [value if isinstance(value, Tensor) else torch.tensor(value) for value in plan.graph(*sized)]

    scope: dict[str, Any] = {**FUNCTIONS, "tensor": torch.tensor}
    exec(plan.source, scope)
    made: Callable[..., tuple[Any, ...]] = scope["make"](run)
    return made


def agree(function: Callable[..., Any], inputs_of: Callable[[int], Sequence[Any]], **dims: Any) -> CallPlan:
    """Plan the piece of ``function`` and compare it with the piece itself at several sizes."""
    piece = piece_of(function, *inputs_of(3), **dims)
    plan = planned(piece)
    run = runnable(plan)
    for size in (3, 1, 2, 8):
        torch.manual_seed(size)
        mine = list(inputs_of(size))
        torch.manual_seed(size)
        others = list(inputs_of(size))
        got, want = run(*_as_inputs(piece, mine, size)), piece.graph(*_as_inputs(piece, others, size))
        assert_same(got, want, f"outputs at {size}")
        assert_same(mine, others, f"inputs after the call at {size}")
    return plan


def _as_inputs(piece: Piece, tensors: Sequence[Any], size: int) -> list[Any]:
    waiting = iter(tensors)
    return [next(waiting) if hasattr(spec, "dtype") else size for spec in piece.inputs]


def test_a_piece_that_returns_only_new_tensors_is_the_machine_code_alone() -> None:
    plan = agree(lambda x: (x + 1, x * 2), lambda n: (torch.randn(n, 4),), x=0)
    assert "return tuple(run((a0, )))" in plan.source


def test_an_output_that_is_an_input_is_the_very_object() -> None:
    piece = piece_of(lambda x: x * 2, torch.randn(3, 2), x=0)
    (placeholder,) = (node for node in piece.graph.graph.nodes if node.op == "placeholder" and node.users)
    output = piece.graph.graph.output_node()
    output.args = ((placeholder, *output.args[0]),)  # type: ignore[misc]
    piece.graph.recompile()
    given = _as_inputs(piece, [torch.randn(5, 2)], 5)
    first, second = runnable(planned(piece))(*given)
    assert any(first is one for one in given)
    assert torch.equal(second, first * 2)


def test_an_output_that_lies_in_an_input_is_a_view_of_it() -> None:
    plan = agree(lambda x: (x[:, 1:].t(), x.view(-1), (x + 1).sum()), lambda n: (torch.randn(n, 4),), x=0)
    assert plan.source.count("as_strided") == 2
    x = torch.randn(6, 4)
    turned = runnable(plan)(x)[0]
    x.fill_(3)
    assert (turned == 3).all()


def test_a_view_begins_where_the_input_begins() -> None:
    piece = piece_of(lambda x: (x[:, 1:], x + 1), torch.randn(5, 4), x=0)
    rows = torch.randn(9, 4)[3:]
    assert torch.equal(runnable(planned(piece))(*_as_inputs(piece, [rows], 6))[0], rows[:, 1:])


def test_a_piece_of_views_alone_has_no_machine_code() -> None:
    plan = agree(lambda x: (x.t(), x[0]), lambda n: (torch.randn(n, 4),), x=0)
    assert plan.graph is None
    assert "run(" not in plan.source


def test_a_piece_that_only_changes_its_input_still_runs() -> None:
    plan = agree(lambda x: x.mul_(2), lambda n: (torch.randn(n, 4),), x=0)
    assert plan.graph is not None


def test_sizes_are_read_off_the_tensors() -> None:
    plan = agree(
        lambda x: (x * x.shape[0], torch.arange(x.shape[0] * 2)), lambda n: (torch.randn(n, 4),), x=0
    )
    assert "tensor(" not in plan.source
    assert all(isinstance(value, Tensor) for value in plan.values)


def test_numbers_that_are_outputs_follow_from_the_sizes() -> None:
    def function(x: Tensor) -> tuple[Tensor, int, int]:
        return x + 1, x.shape[0] * 2 + 1, x.shape[0] // 2

    def call(x: Tensor) -> Any:
        y, double, half = function(x)
        return torch.relu(y), torch.zeros(double), torch.zeros(half)

    piece = piece_of(call, torch.randn(5, 4), x=0)
    graph = piece.graph
    (output,) = [node for node in graph.graph.nodes if node.op == "output"]
    sized = [node for node in graph.graph.nodes if isinstance(node.meta.get("example_value"), torch.SymInt)]
    output.args = ((*output.args[0], *(node for node in sized if node.op != "placeholder")),)
    graph.recompile()
    got = runnable(planned(piece))(*_as_inputs(piece, [torch.ones(7, 4)], 7))
    want = graph(*_as_inputs(piece, [torch.ones(7, 4)], 7))
    assert {type(value) for value in want} >= {int}
    assert_same(got, want)


def test_a_size_that_no_tensor_has_goes_in_as_a_tensor() -> None:
    piece = piece_of(lambda x: torch.arange(x.shape[0] * 3) + 1, torch.randn(5, 4), x=0)
    assert not any(hasattr(spec, "dtype") for spec in piece.inputs)
    plan = planned(piece)
    assert "tensor(a0)" in plan.source
    assert torch.equal(runnable(plan)(4)[0], torch.arange(12) + 1)


def test_a_single_size_is_a_number_in_the_code() -> None:
    piece = piece_of(lambda x: x * x.shape[0], torch.randn(5, 4), x=0)
    plan = planned(piece, Range(8, 8))
    x = torch.randn(8, 4)
    assert torch.equal(runnable(plan)(*_as_inputs(piece, [x], 8))[0], x * 8)
    assert ".size(" not in plan.source


def test_a_result_returned_twice_is_computed_once() -> None:
    piece = piece_of(lambda x: x + 1, torch.randn(5, 4), x=0)
    output = piece.graph.graph.output_node()
    output.args = ((output.args[0][0], output.args[0][0], None),)  # type: ignore[index]
    piece.graph.recompile()
    first, second, third = runnable(planned(piece))(*_as_inputs(piece, [torch.ones(2, 4)], 2))
    assert first is second
    assert third is None


def test_a_view_of_another_dtype_is_refused_with_the_reason() -> None:
    piece = piece_of(lambda x: (x.view(torch.int32), x + 1), torch.randn(5, 4), x=0)
    with pytest.raises(CompileError) as refused:
        planned(piece)
    assert str(refused.value) == (
        "AOTInductor cannot take an output that reads the memory of an input of torch.float32 "
        "as torch.int32\n"
        "  to do: on_piece_error='eager' runs this piece uncompiled; backend='inductor' compiles it"
    )


def test_a_piece_is_not_changed_by_planning() -> None:
    piece = piece_of(lambda x: (x * x.shape[0], x.t()), torch.randn(5, 4), x=0)
    before = piece.graph.code
    planned(piece)
    assert piece.graph.code == before
