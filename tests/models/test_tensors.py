"""Tensors of every dtype and layout as inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.models.checks import SIZES, Inputs, works_unchanged

pytestmark = pytest.mark.usefixtures("no_grad")


def twice_and_sum(x: Tensor) -> tuple[Tensor, Tensor]:
    return x + x, x.sum(0)


def conjugate_product(x: Tensor) -> Tensor:
    return (x * x.conj()).real + x.imag


def inverted(x: Tensor) -> tuple[Tensor, Tensor]:
    return ~x, x.any(0)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.uint8]
)
def test_numbers_of_every_dtype(dtype: torch.dtype) -> None:
    works_unchanged(twice_and_sum, lambda n: (torch.randint(0, 9, (n, 3)).to(dtype),))


def test_a_model_in_half_precision() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)).to(torch.bfloat16).eval()
    works_unchanged(
        model, lambda n: (torch.randn(n, 4, dtype=torch.bfloat16),), dynamic_arg_dims={"input": 0}
    )


def test_complex_numbers() -> None:
    works_unchanged(conjugate_product, lambda n: (torch.randn(n, 3, dtype=torch.complex64),))


def test_booleans() -> None:
    works_unchanged(inverted, lambda n: (torch.randn(n, 3) > 0,))


def test_a_zero_dimensional_tensor() -> None:
    def scaled(x: Tensor, by: Tensor) -> Tensor:
        return x * by

    works_unchanged(scaled, lambda n: (torch.randn(n), torch.randn(())), dynamic_arg_dims={"x": 0})


# -- strides


LAYOUTS: dict[str, Callable[[int], Tensor]] = {
    "transposed": lambda n: torch.randn(3, n).t(),
    "every second column": lambda n: torch.randn(n, 6)[:, ::2],
    "middle columns": lambda n: torch.randn(n, 5)[:, 1:4],
    "expanded": lambda n: torch.randn(1, 3).expand(n, 3),
    "every second row": lambda n: torch.randn(2 * n, 3)[::2],
    "without the first rows": lambda n: torch.randn(n + 2, 3)[2:],
}


@pytest.mark.parametrize("sizes", [SIZES, (1, 4, 2)], ids=["3 first", "1 first"])
@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_inputs_that_are_not_contiguous(make: Callable[[int], Tensor], sizes: tuple[int, ...]) -> None:
    def doubled(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x.sum(1)

    # At size 1 some of these are contiguous.
    became_contiguous = sizes[0] == 1 and not make(2).is_contiguous() and make(1).is_contiguous()
    works_unchanged(doubled, lambda n: (make(n),), sizes, traces=1 + became_contiguous)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_reshape_that_copies_or_not(name: str) -> None:
    def flat(x: Tensor) -> Tensor:
        return x.reshape(-1) + 1

    # For some, whether it copies depends on whether the size is 1.
    traces = 2 if name in ("transposed", "expanded", "every second row") else 1
    works_unchanged(flat, lambda n: (LAYOUTS[name](n),), traces=traces)


def test_strides_are_told_apart() -> None:
    def doubled(x: Tensor) -> Tensor:
        return x * 2

    def inputs(wide: bool) -> Inputs:
        x = torch.randn(3, 9)
        return ((x[:, :4] if wide else x[:, :5].contiguous()).t(),)

    # Both are transposed, but the columns of one lie farther apart than it has rows.
    works_unchanged(doubled, inputs, [False, True, False, True], traces=2)


def test_an_image_in_channels_last_order() -> None:
    model = nn.Conv2d(3, 4, 3).eval()

    def inputs(n: int) -> Inputs:
        return (torch.randn(n, 3, 6, 6).to(memory_format=torch.channels_last),)

    # Which memory format a convolution answers in, torch decides by whether the batch is 1.
    works_unchanged(model, inputs, traces=2, dynamic_arg_dims={"input": 0})
    works_unchanged(model, inputs, [1, 3, 1], traces=2, dynamic_arg_dims={"input": 0})


def test_sizes_of_a_tensor_that_only_its_size_is_read_of() -> None:
    def counted(x: Tensor, other: Tensor) -> Tensor:
        return x + other.size(0)

    def inputs(n: int) -> Inputs:
        return torch.zeros(2), torch.ones(n)

    works_unchanged(counted, inputs, dynamic_arg_dims={"x": 0, "other": 0})
    works_unchanged(counted, inputs, dynamic_arg_dims={"x": 0}, traces=len(SIZES))


def test_fixed_sizes_of_complex_numbers_are_checked() -> None:
    def widened(x: Tensor) -> Tensor:
        return x * x.size(1)

    works_unchanged(widened, lambda n: (torch.randn(2, n, dtype=torch.complex64),), traces=len(SIZES))
