"""Inputs that are one tensor, or views of one memory: read and changed in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torch_piecewise as tp
from tests.models.checks import Inputs, works_unchanged

pytestmark = pytest.mark.usefixtures("no_grad")


def test_the_same_tensor_passed_twice() -> None:
    def added(x: Tensor, y: Tensor) -> Tensor:
        return x + 2 * y

    def inputs(n: int) -> Inputs:
        x = torch.randn(n, 3)
        return x, x

    works_unchanged(added, inputs)


def test_the_same_tensor_passed_twice_and_then_two_tensors() -> None:
    def doubled(x: Tensor, y: Tensor) -> Tensor:
        x.mul_(2)
        return x + y

    def inputs(size: tuple[int, bool]) -> Inputs:
        x = torch.randn(size[0], 3)
        return x, x if size[1] else torch.randn(size[0], 3)

    works_unchanged(doubled, inputs, [(3, True), (1, True), (3, False), (2, False), (4, True)], traces=2)
    works_unchanged(doubled, inputs, [(3, False), (1, False), (3, True), (1, True), (2, False)], traces=2)


def test_views_of_one_tensor_that_are_only_read() -> None:
    def product(x: Tensor, y: Tensor) -> Tensor:
        return x * y

    def inputs(n: int) -> Inputs:
        base = torch.randn(2 * n, 3)
        return base[:n], base[n:]

    works_unchanged(product, inputs)


def halves_changed(x: Tensor, y: Tensor) -> Tensor:
    x.mul_(3)
    return x + y


def test_views_of_one_tensor_of_which_one_is_changed() -> None:
    def inputs(n: int) -> Inputs:
        base = torch.randn(2 * n, 3)
        return base[:n], base[n:]

    works_unchanged(halves_changed, inputs)


def test_overlapping_views_of_which_one_is_changed() -> None:
    def inputs(n: int) -> Inputs:
        base = torch.randn(n + 1, 3)
        return base[:n], base[1:]

    works_unchanged(halves_changed, inputs)


def test_a_tensor_and_its_view_of_which_one_is_changed() -> None:
    def inputs(n: int) -> Inputs:
        base = torch.randn(n, 3)
        return base, base.view(n, 3)

    works_unchanged(halves_changed, inputs)


def test_separate_tensors_first_and_overlapping_ones_later() -> None:
    def inputs(size: tuple[int, bool]) -> Inputs:
        base = torch.randn(size[0] + 1, 3)
        return base[: size[0]].clone() if size[1] else base[: size[0]], base[1:]

    works_unchanged(halves_changed, inputs, [(3, True), (3, False), (1, False), (2, True)], traces=2)


def test_tensors_that_share_memory_in_the_first_call_of_size_1() -> None:
    def inputs(n: int) -> Inputs:
        base = torch.randn(n + 1, 3)
        return base[:n], base[1:]

    works_unchanged(halves_changed, inputs, [1, 3, 2, 1])


def test_an_augmented_assignment_to_one_of_two_views() -> None:
    def shifted(x: Tensor, y: Tensor) -> Tensor:
        x += 1
        return x * y

    def inputs(n: int) -> Inputs:
        base = torch.randn(n + 1, 3)
        return base[:n], base[1:]

    compiled = works_unchanged(shifted, inputs)
    (piece,) = tp.program_of(compiled).entries[0].program.pieces.infos
    assert piece.fingerprint is None, "a compiler may reorder reads and writes of one memory"


def test_an_input_changed_in_place() -> None:
    class Filling(nn.Module):
        def forward(self, x: Tensor, out: Tensor) -> Tensor:
            out.copy_(x * 2)
            out[0] += 1
            x.clamp_(min=0)
            return out.sum(0)

    works_unchanged(Filling(), lambda n: (torch.randn(n, 3), torch.empty(n, 3)))
