"""Each piece against eager, on the values that reach it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from tests.graphs import Stack
from torch_piecewise.errors import GuardError
from torch_piecewise.trials.copies import copied
from torch_piecewise.trials.verify import DRAWS_RANDOM_NUMBERS, WHOLE_CALL

pytestmark = pytest.mark.usefixtures("no_grad")


def ids(size: int) -> Tensor:
    return torch.randint(0, 50, (size,))


def handle_of(backend: str, model: Any = None, **fields: Any) -> Any:
    model = model or Stack(3).eval()
    fields = {
        "splitting_ops": ["tests::attention"],
        "dynamic_arg_dims": {"ids": 0},
        "disable_cache": True,
    } | fields
    dotted = backend if backend in ("eager", "inductor") else f"tests.trials.compilers.{backend}"
    tp.compile(model, backend=dotted, compile_ranges_endpoints=[8], **fields)
    return model, tp.program_of(model)


def test_a_right_program_is_found_right_and_every_piece_was_compared() -> None:
    model, handle = handle_of("eager")
    model(ids(5))
    found = handle.verify(ids(5))
    assert found.ok
    assert found.first is None
    assert [check.piece for check in found.checks] == ["submod_0", "submod_2", "submod_4", "submod_6"]
    assert all(check.skipped == "" and check.largest == 0 for check in found.checks)
    assert str(found) == "4 of 4 runs of pieces compared with eager\n[1, 8]: agrees"


def test_the_first_wrong_piece_is_named_and_what_comes_before_it_is_not() -> None:
    model, handle = handle_of("wrong_last")
    model(ids(5))
    found = handle.verify(ids(5))
    assert found.first.piece == "submod_6"
    assert found.first.problem.startswith("output 0: Tensor-likes are not close!")
    assert found.first.largest == pytest.approx(0.01, rel=1e-3)
    assert [check.piece for check in found.checks if check.problem] == ["submod_6"]


def test_a_wrong_range_is_told_from_a_right_one() -> None:
    model, handle = handle_of("wrong_for_large")
    model(ids(5))
    found = handle.verify([ids(5), {"ids": ids(20)}, (ids(30),)])
    assert found.first_by_range["[1, 8]"] is None
    wrong = found.first_by_range["[9, inf]"]
    assert (wrong.piece, wrong.size) == ("submod_0", 20)
    assert "[9, inf]: submod_0: output 0" in str(found)


def test_tolerances_are_those_of_torch_testing_unless_given() -> None:
    model, handle = handle_of("barely_wrong_last")
    model(ids(5))
    assert handle.verify(ids(5)).ok
    found = handle.verify(ids(5), rtol=0.0, atol=1e-8)
    assert found.first.piece == "submod_6"


def test_a_piece_that_fails_where_eager_does_not_is_a_finding() -> None:
    model, handle = handle_of("failing_last")
    with pytest.raises(RuntimeError, match="no such kernel"):
        model(ids(5))
    found = handle.verify(ids(5))
    assert found.first.problem == "fails where eager does not: RuntimeError: no such kernel"


class Counting(torch.nn.Module):
    """Changes a buffer in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, ids: Tensor) -> Tensor:
        self.seen.add_(1)
        return ids * self.seen.sum()


def test_a_write_that_is_missing_is_found_and_the_models_own_state_moves_once() -> None:
    model, handle = handle_of("forgetful", Counting(), splitting_ops=[])
    model(ids(5))
    model.seen.zero_()
    found = handle.verify(ids(5))
    assert "(changed in place)" in found.first.problem
    assert torch.equal(model.seen, torch.ones(4))


def test_a_buffer_that_a_cut_writes_later_is_not_compared() -> None:
    model, handle = handle_of("eager")
    model(ids(400))
    assert all(handle.verify(ids(size)).ok for size in (100, 200, 400))


class Dropping(torch.nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return torch.nn.functional.dropout(ids.float(), 0.5, training=True)


def test_a_piece_that_draws_random_numbers_is_skipped_with_the_reason() -> None:
    model, handle = handle_of("eager", Dropping())
    model(ids(5))
    (check,) = handle.verify(ids(5)).checks
    assert check.skipped == DRAWS_RANDOM_NUMBERS


def test_a_call_that_no_trace_serves_is_an_error_with_what_to_do() -> None:
    _model, handle = handle_of("eager")
    with pytest.raises(GuardError, match=r"No trace serves this call\n(.*\n)+  to do: call the model once"):
        handle.verify(ids(5))


def test_a_call_under_another_grad_mode_than_the_traced_one_is_named() -> None:
    model, handle = handle_of("eager")
    model(ids(5))
    with torch.enable_grad(), pytest.raises(GuardError) as refused:
        handle.verify(ids(5))
    assert "\n  got: grad mode was off in the trace, got True\n" in str(refused.value)


def test_copies_lie_in_memory_as_the_originals_do() -> None:
    base = torch.arange(60.0).reshape(6, 10)
    rows, columns, other = base[1:3], base[:, 2:5].t(), torch.zeros(3, 0)
    weight = torch.nn.Parameter(torch.randn(2, 2))
    first, second, third, fourth, number = copied((rows, columns, other, weight, 7))
    assert number == 7
    assert fourth.requires_grad
    for copy, original in ((first, rows), (second, columns), (third, other), (fourth, weight)):
        assert torch.equal(copy, original)
        assert copy.stride() == original.stride()
        assert copy.numel() == 0 or copy.data_ptr() != original.data_ptr()
    first.fill_(-1)
    assert (second[:, 1:3] == -1).all()
    assert (base >= 0).all()


@pytest.mark.slow
@pytest.mark.inductor
def test_inductors_pieces_agree_with_eager() -> None:
    model, handle = handle_of("inductor", Stack(1).eval())
    model(ids(5))
    assert handle.verify([ids(5), ids(20)]).ok


class Centred(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x - x.mean(0)


def test_a_call_that_is_wrong_once_padded_and_replayed_is_found_though_every_piece_agrees() -> None:
    for padding, problem in (("always", True), ("auto", False)):
        model = Centred()
        tp.compile(
            model,
            dynamic_arg_dims={"x": 0},
            backend="eager",
            splitting_ops=[],
            static_graph_class="torch_piecewise.testing.GraphRecorder",
            cudagraph_mode="full",
            cudagraph_capture_sizes=[4],
            cudagraph_padding=padding,
            disable_cache=True,
        )
        model(torch.randn(3, 4))
        found = tp.program_of(model).verify(torch.randn(3, 4) + 1)
        assert found.ok is not problem
        assert found.checks[-1].piece == WHOLE_CALL
        if problem:
            assert found.first is not None
            assert found.first.piece == WHOLE_CALL
            assert found.first.problem.startswith("output ")
        assert model.calls.item() == 2
