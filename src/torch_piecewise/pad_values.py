"""What an argument is padded with has to be a value of its dtype."""

from __future__ import annotations

import math

import torch

from torch_piecewise.errors import ConfigError


def check_pad_value(argument: str, value: float, dtype: torch.dtype) -> None:
    """Refuse a value that a tensor of ``dtype`` cannot hold.

    Raises:
        ConfigError: it is none; names the argument.
    """
    if not _holds(dtype, value):
        raise ConfigError(
            f"cudagraph_pad_values has a value for {argument!r} that its dtype cannot hold",
            expected=f"{_values(dtype)} ({dtype})",
            got=repr(value),
            hint="give a value of that dtype that is harmless to the model",
        )


def _holds(dtype: torch.dtype, value: float) -> bool:
    if dtype is torch.bool:
        return value in (0, 1)
    if dtype.is_floating_point or dtype.is_complex:
        return not math.isfinite(value) or abs(value) <= torch.finfo(dtype).max
    limits = torch.iinfo(dtype)
    return limits.min <= value <= limits.max and value == int(value)


def _values(dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return "True or False"
    if dtype.is_floating_point or dtype.is_complex:
        return f"a number up to {torch.finfo(dtype).max}"
    limits = torch.iinfo(dtype)
    return f"a whole number from {limits.min} to {limits.max}"
