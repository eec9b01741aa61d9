"""What arguments are padded with, held against their dtypes."""

from __future__ import annotations

import pytest
import torch

from torch_piecewise.errors import ConfigError
from torch_piecewise.pad_values import check_pad_value


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (1000, torch.int8, "a whole number from -128 to 127 (torch.int8)"),
        (-1, torch.uint8, "a whole number from 0 to 255 (torch.uint8)"),
        (-1, torch.bool, "True or False (torch.bool)"),
        (0.5, torch.int64, "a whole number from -9223372036854775808 to 9223372036854775807 (torch.int64)"),
        (float("inf"), torch.int32, "a whole number from -2147483648 to 2147483647 (torch.int32)"),
        (float("nan"), torch.int32, "a whole number from -2147483648 to 2147483647 (torch.int32)"),
        (1e6, torch.float16, "a number up to 65504.0 (torch.float16)"),
    ],
)
def test_a_value_that_the_dtype_cannot_hold_names_the_argument(
    value: float, dtype: torch.dtype, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_pad_value("m", value, dtype)
    assert str(caught.value) == (
        "cudagraph_pad_values has a value for 'm' that its dtype cannot hold\n"
        f"  expected: {expected}\n"
        f"  got: {value!r}\n"
        "  to do: give a value of that dtype that is harmless to the model"
    )


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (-128, torch.int8),
        (1.0, torch.int64),
        (True, torch.int32),
        (1, torch.bool),
        (float("-inf"), torch.float16),
        (float("nan"), torch.bfloat16),
        (0.5, torch.complex64),
    ],
)
def test_a_value_that_the_dtype_holds_passes(value: float, dtype: torch.dtype) -> None:
    check_pad_value("m", value, dtype)
