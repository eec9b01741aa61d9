"""Models under the modes people call them in: inference mode, autocast, train and eval, seeds, threads."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torch_piecewise as tp
from tests.graphs import Stack
from tests.models.checks import SIZES, assert_same, works_unchanged


def half() -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


class Mixed(nn.Module):
    """Linear layers around an attention that is a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)[None, None]
        return self.second(functional.scaled_dot_product_attention(hidden, hidden, hidden)[0, 0])


def rows(n: int) -> tuple[Tensor]:
    return (torch.randn(n, 4),)


@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.inference_mode, torch.enable_grad, half],
    ids=["no_grad", "inference", "grad", "autocast"],
)
def test_a_cut_model_under_a_mode(mode: Callable[[], AbstractContextManager[object]]) -> None:
    with mode():
        compiled = works_unchanged(Mixed().eval(), rows)
    assert tp.program_of(compiled).stats.cuts == 1


def test_modes_in_turn_do_not_share_a_trace() -> None:
    model = Mixed().eval()
    compiled = tp.compile(copy.deepcopy(model), backend="eager")
    for mode in (torch.no_grad, half, torch.inference_mode, nullcontext, torch.no_grad, half):
        with mode():
            for n in SIZES:
                (x,) = rows(n)
                assert_same(compiled(x), model(x), f"{mode.__name__} at {n}")


def test_results_of_inference_mode_are_inference_tensors() -> None:
    compiled = tp.compile(Mixed().eval(), backend="eager")
    with torch.no_grad():
        assert not compiled(torch.randn(3, 4)).is_inference()
    with torch.inference_mode():
        assert compiled(torch.randn(3, 4)).is_inference()
        x = torch.randn(2, 4)
    with torch.no_grad():
        assert_same(compiled(x).shape, torch.Size([2, 4]))


def test_autocast_inside_the_model() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = functional.relu(self.layer(x))
                mixed = functional.scaled_dot_product_attention(y[None], y[None], y[None])
                z = mixed[0] @ y.t()
            return y, self.layer(z.float() @ x)

    with torch.no_grad():
        works_unchanged(Inside(), rows)


def test_no_grad_inside_the_model() -> None:
    class Inside(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                scale = functional.scaled_dot_product_attention(x[None], x[None], x[None])[0]
            return super().forward(x) * scale

    works_unchanged(Inside(), rows)


@pytest.mark.parametrize("splitting_ops", [[], ["torch.nn.functional.dropout"]])
def test_dropout_in_training_mode_under_a_seed(splitting_ops: list[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 4), nn.Dropout(0.2)).train()
    works_unchanged(model, rows, dynamic_arg_dims={"input": 0}, splitting_ops=splitting_ops)


def test_random_numbers_made_by_the_model() -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + torch.randn_like(x) + torch.rand(x.shape[0], 1)

    works_unchanged(noisy, rows)


def test_a_generator_is_advanced_as_the_model_does() -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + torch.randn_like(x)

    compiled = tp.compile(noisy, backend="eager")
    x = torch.zeros(3)
    torch.manual_seed(3)
    want = [noisy(x), torch.randn(2), noisy(x)]
    torch.manual_seed(3)
    got = [compiled(x), torch.randn(2), compiled(x)]
    assert_same(got, want)


def test_switching_between_training_and_evaluation() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    compiled = tp.compile(copy.deepcopy(model), backend="eager", dynamic_arg_dims={"input": 0})
    for training in (True, False, True, False):
        x = torch.randn(5, 4)
        for one in (model, compiled):
            one.train(training)
        torch.manual_seed(0)
        want = model(x)
        torch.manual_seed(0)
        assert_same(compiled(x), want)
    assert tp.program_of(compiled).stats.traces == 2


def test_a_submodule_switched_to_evaluation_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5)).train()
    compiled = tp.compile(copy.deepcopy(model), backend="eager", dynamic_arg_dims={"input": 0})
    x = torch.randn(5, 4)
    compiled(x)
    for one in (model, compiled):
        one[1].eval()
    assert_same(compiled(x), model(x))


def test_calls_from_several_threads() -> None:
    with torch.no_grad():
        model = Stack(2).eval()
        compiled = tp.compile(copy.deepcopy(model), backend="eager", splitting_ops=["tests::attention"])
        inputs = [torch.randint(0, 50, (1 + index % 5,)) for index in range(24)]
        want = [model(ids) for ids in inputs]
    got: dict[int, Tensor] = {}

    def serve(start: int) -> None:
        with torch.no_grad():
            for index in range(start, len(inputs), 4):
                got[index] = compiled(inputs[index])

    threads = [threading.Thread(target=serve, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same([got[index] for index in range(len(inputs))], want)
    assert tp.program_of(compiled).stats.traces == 1
