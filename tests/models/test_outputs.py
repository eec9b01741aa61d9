"""Every kind of result comes back as the model made it: structure, identity, memory, plain values."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

import torch_piecewise as tp
from tests.models.checks import SIZES, works_unchanged

pytestmark = pytest.mark.usefixtures("no_grad")


@dataclass
class Result:
    hidden: Tensor
    loss: Tensor | None
    names: tuple[str, ...]


class Bounds(NamedTuple):
    low: Tensor
    high: Tensor


def rows(n: int) -> tuple[Tensor]:
    return (torch.randn(n, 3),)


def test_a_nest_of_containers() -> None:
    def nest(x: Tensor) -> dict[str, Any]:
        y = x + 1
        return {
            "list": [y, (y * 2, None)],
            "bounds": Bounds(x.amin(1), x.amax(1)),
            "more": {"deep": [[y - 1]]},
        }

    works_unchanged(nest, rows)


def test_a_dataclass() -> None:
    def judged(x: Tensor) -> Result:
        return Result(x * 2, None, ("a", "b"))

    works_unchanged(judged, rows)


def test_a_transformers_model_output() -> None:
    def answered(x: Tensor) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=x + 1, hidden_states=(x, x * 2))

    compiled = works_unchanged(answered, rows)
    out = compiled(torch.ones(2, 3))
    assert torch.equal(out[0], out["last_hidden_state"])


def test_an_ordered_dict() -> None:
    def ordered(x: Tensor) -> collections.OrderedDict[str, Tensor]:
        return collections.OrderedDict(second=x + 2, first=x + 1)

    works_unchanged(ordered, rows)


def test_numbers_strings_none_and_sizes() -> None:
    def described(x: Tensor) -> tuple[Any, ...]:
        y = x.repeat(2, 1)
        return y, 3, 2.5, "text", None, True, x.shape, x.shape[0], y.shape[0] + 1, x.dtype, x.dim(), x.numel()

    works_unchanged(described, rows)


def test_a_size_alone() -> None:
    def counted(x: Tensor) -> int:
        return x.shape[0] * 2

    works_unchanged(counted, rows)


def test_a_comparison_of_sizes_is_made_at_each_call() -> None:
    def compared(x: Tensor) -> tuple[Tensor, bool]:
        return x + 1, x.shape[0] > 2

    works_unchanged(compared, rows)


def test_nothing_but_a_change_of_the_input() -> None:
    def incremented(x: Tensor) -> None:
        x.add_(1)

    works_unchanged(incremented, rows)


@pytest.mark.parametrize("result", [None, 3, "text", ()])
def test_a_model_without_any_operation(result: Any) -> None:
    def nothing(x: Tensor) -> Any:
        return result

    works_unchanged(nothing, rows)


def test_an_input_returned_as_it_is() -> None:
    def same(x: Tensor) -> Tensor:
        return x

    def beside(x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1

    x = torch.randn(4, 3)
    assert works_unchanged(same, rows)(x) is x
    assert works_unchanged(beside, rows)(x)[0] is x


def test_a_view_of_an_input_shares_its_memory() -> None:
    def viewed(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, 1:], x.t()

    compiled = works_unchanged(viewed, rows)
    x = torch.randn(4, 3)
    part, turned = compiled(x)
    x.fill_(5)
    assert (part == 5).all()
    assert (turned == 5).all()


def test_an_input_that_was_changed_in_place_is_returned_as_itself() -> None:
    def changed(x: Tensor) -> Tensor:
        return x.mul_(2)

    x = torch.randn(4, 3)
    assert works_unchanged(changed, rows)(x) is x


def test_one_tensor_returned_twice_is_one_tensor() -> None:
    def twice(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        y = x * 2
        return y, [y, x]

    first, (second, _) = works_unchanged(twice, rows)(torch.randn(2, 3))
    assert first is second


def test_views_of_one_result_share_their_memory() -> None:
    def halves(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x * 2
        return y, y[:, :1], y.view(-1)

    whole, part, flat = works_unchanged(halves, rows)(torch.randn(2, 3))
    whole.fill_(7)
    assert (part == 7).all()
    assert (flat == 7).all()


def test_a_parameter_and_a_buffer_returned_as_they_are() -> None:
    class Telling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))
            self.register_buffer("shift", torch.randn(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return x * self.weight, self.weight, self.shift

    compiled = works_unchanged(Telling(), rows)
    _, weight, shift = compiled(torch.randn(2, 3))
    assert weight is compiled.weight
    assert shift is compiled.shift


def test_a_generator_and_its_items_in_order() -> None:
    def unpacked(x: Tensor) -> list[Tensor]:
        return [part + index for index, part in enumerate(x.unbind(1))]

    works_unchanged(unpacked, rows)


@pytest.mark.parametrize("cut", [[], ["torch.nn.functional.relu"], ["torch.sin", "torch.nn.functional.relu"]])
def test_results_of_every_piece_of_a_cut_graph(cut: list[str]) -> None:
    def staged(x: Tensor) -> list[Any]:
        first = torch.sin(x)
        second = torch.nn.functional.relu(first * 2)
        count = second.shape[0]
        third = torch.sin(second.sum(0) + count)
        return [first, second, third, count, x]

    compiled = works_unchanged(staged, rows, SIZES, splitting_ops=cut)
    assert tp.program_of(compiled).stats.cuts == {0: 0, 1: 1, 2: 3}[len(cut)]
