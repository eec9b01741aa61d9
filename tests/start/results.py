"""Models that return more than tensors; the classes of two of the results stand in other modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.start import results_elsewhere


class Named(NamedTuple):
    out: Tensor
    count: int


@dataclass
class Data:
    out: Tensor
    where: torch.device


class Dtype(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x.sin(), x.dtype


class Device(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"out": x.sin(), "where": x.device, "format": torch.contiguous_format, "layout": x.layout}


class Size(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x.sin(), x.shape, (torch.float16, [torch.device("cpu")])


class NamedResult(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return Named(x.sin(), 3)


class NamedElsewhere(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return results_elsewhere.Elsewhere(x.sin(), x.dtype)


class DataResult(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return Data(x.sin(), x.device)


MODELS = (Dtype, Device, Size, NamedResult, NamedElsewhere, DataResult)
