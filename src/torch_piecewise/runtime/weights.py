"""Weights without the model's code: a safetensors file, read in place, and modules that only hold tensors."""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from torch_piecewise.errors import BundleError
from torch_piecewise.runtime.file import opened
from torch_piecewise.runtime.state import state_rows

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_HEADER = struct.Struct("<Q")
_HEADER_LIMIT = 100_000_000
"""Bytes; the format's own limit."""


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file, its memory the file's own, private to this process.

    Pages are read when they are first touched, and a change of a tensor does not reach the file. Format:
    eight bytes with the length of a JSON header, the header (name -> dtype, shape, offsets), the data.

    Raises:
        BundleError: it is no safetensors file, or it is cut off.
        BundleFileError: it cannot be read.
    """
    with opened(path, "weights", "a safetensors file") as file:
        size = path.stat().st_size
        if size < _HEADER.size:
            raise _broken(path, f"{size} bytes")
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    (length,) = _HEADER.unpack_from(memory)
    if length > min(_HEADER_LIMIT, size - _HEADER.size):
        raise _broken(path, f"a header of {length} bytes in a file of {size}")
    begin = _HEADER.size + length
    try:
        header = json.loads(memory[_HEADER.size : begin])
        entries = {name: facts for name, facts in header.items() if name != "__metadata__"}
        return {name: _tensor(path, memory, begin, name, facts) for name, facts in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BundleError):
            raise
        raise _broken(path, f"a header that cannot be read: {error!r}") from error


def _tensor(path: Path, memory: mmap.mmap, begin: int, name: str, facts: Mapping[str, Any]) -> torch.Tensor:
    dtype, shape = _DTYPES.get(facts["dtype"]), [int(size) for size in facts["shape"]]
    first, last = (begin + int(offset) for offset in facts["data_offsets"])
    if dtype is None:
        raise _broken(path, f"{name!r} of the unknown dtype {facts['dtype']}")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or not begin <= first <= last <= len(memory):
        raise _broken(path, f"{name!r} reaches beyond its end")
    if last - first != count * dtype.itemsize:
        raise _broken(path, f"{name!r} of shape {tuple(shape)} in {last - first} bytes")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=first).reshape(shape)


def _broken(path: Path, got: str) -> BundleError:
    return BundleError(
        f"{path} is no whole safetensors file",
        expected="tensors, each within it",
        got=got,
        hint="safetensors.torch.save_file(model.state_dict(), path) writes one; tp.load takes a model too",
    )


def holder_of(
    manifest: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], members: Mapping[str, bytes]
) -> torch.nn.Module:
    """A tree of plain modules that holds what the bundle reads, where the model had it.

    Args:
        tensors: by name; one saved under another name of the same parameter (tied weights) is found.
        members: of the bundle; holds the buffers that no file of weights has.

    Raises:
        BundleError: the file has different tensors under the names of one.
    """
    root = torch.nn.Module()
    places = {"": root}
    modules, state = manifest["modules"], manifest["state"]
    for path, kind in modules["rows"]:
        if path:
            parent, _, name = path.rpartition(".")
            places[path] = torch.nn.Module()
            places[parent].add_module(name, places[path])
        places[path].training = modules["kinds"][kind]["training"]
    for first, kind in state_rows(state):
        names = (first, *state["aliases"].get(first, ()))
        tensor = _found(names, kind, tensors)
        if tensor is None and first in state["members"]:
            tensor = _from_member(members[state["members"][first]], kind)
        if tensor is not None:
            _register(tensor, names, kind["table"], places)
    return root


def _register(
    tensor: torch.Tensor, names: Sequence[str], table: str, places: Mapping[str, torch.nn.Module]
) -> None:
    parameter = torch.nn.Parameter(tensor, requires_grad=False)
    for path in names:
        parent, _, name = path.rpartition(".")
        if table == "_parameters":
            places[parent].register_parameter(name, parameter)
        else:
            places[parent].register_buffer(name, tensor)


def _found(
    names: Sequence[str], kind: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> torch.Tensor | None:
    saved = [name for name in names if name in tensors]
    for other in saved[1:]:
        if not torch.equal(tensors[saved[0]], tensors[other]):
            raise BundleError(
                f"The weights do not fit the bundle: {other} differs from {saved[0]}",
                expected="one tensor under both names, as in the model that was baked",
                got="two tensors",
                hint="bake a model in which they are two",
            )
    return tensors[saved[0]].to(kind["device"]) if saved else None


def _from_member(content: bytes, kind: Mapping[str, Any]) -> torch.Tensor:
    dtype = getattr(torch, kind["dtype"])
    flat = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return flat.reshape(kind["size"]).to(kind["device"])
