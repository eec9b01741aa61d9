"""One compare in C for the sizes, strides, dtypes and devices of many tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def layout_check(tensors: Sequence[torch.Tensor]) -> Callable[..., bool]:
    """A function of as many tensors that says whether they are laid out as ``tensors`` are now.

    ``TensorGuards`` (2.11, 2.13) is what Dynamo compares inputs with; under 0.1 us a tensor, where reading
    strides in Python takes longer than a small kernel. It also compares ``requires_grad`` and what
    is active around the call (inference mode, say): a False may mean just that.
    """
    if not tensors:
        return lambda: True
    guards: Any = torch._C._dynamo.guards
    check: Callable[..., bool] = guards.TensorGuards(
        *tensors,
        dynamic_dims_sizes=[list(tensor.shape) for tensor in tensors],
        dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],
    ).check
    return check
