"""A result's class, in a module that no trace runs through."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Elsewhere(NamedTuple):
    out: Tensor
    dtype: torch.dtype
