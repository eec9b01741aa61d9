"""Identity of a tensor constant: its description and a streamed hash of its values."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator

import torch

from torch_piecewise.errors import FingerprintError

CHUNK = 4 << 20
"""Bytes of a tensor that are copied at once while hashing."""


def content_hash(tensor: torch.Tensor) -> str:
    """SHA-256 in hex of a tensor's elements in row-major order, whatever its strides.

    Never copies more than :data:`CHUNK` bytes (or one element) at once.

    Raises:
        FingerprintError: its values cannot be read as plain bytes (a subclass, a fake tensor, a sparse
            or quantised one, one that autograd made).
    """
    _check_plain(tensor)
    hasher = hashlib.sha256()
    try:
        for part in _chunks(tensor.detach().resolve_conj().resolve_neg()):
            flat = part.cpu().contiguous().reshape(-1).view(torch.uint8)
            hasher.update(ctypes.string_at(flat.data_ptr(), flat.numel()))
    except RuntimeError as error:
        raise _no_content(tensor, str(error)) from error
    return hasher.hexdigest()


def _check_plain(tensor: torch.Tensor) -> None:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise _no_content(tensor, f"a {type(tensor).__module__}.{type(tensor).__qualname__}")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise _no_content(tensor, f"layout {tensor.layout}, dtype {tensor.dtype}")
    if tensor.device.type == "meta":
        raise _no_content(tensor, "a tensor on the meta device")
    if tensor.grad_fn is not None:
        raise _no_content(tensor, "a tensor that autograd made from others")


def _no_content(tensor: torch.Tensor, got: str) -> FingerprintError:
    return FingerprintError(
        f"A constant tensor of shape {tuple(tensor.shape)} has no stable identity",
        expected="a dense torch.Tensor or Parameter with values of its own",
        got=got,
        hint="pass the tensor to the piece as an input",
    )


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if tensor.numel() == 0:
        return
    if tensor.numel() * tensor.element_size() <= CHUNK or tensor.dim() == 0:
        yield tensor
        return
    if tensor.size(0) == 1:
        yield from _chunks(tensor[0])
        return
    row = max(1, tensor[0].numel() * tensor.element_size())
    rows = max(1, CHUNK // row)
    for start in range(0, tensor.size(0), rows):
        yield from _chunks(tensor[start : start + rows])
