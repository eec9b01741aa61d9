"""Inputs on memory that stays where it is, for code that was captured on that memory."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from typing import Any

import torch

from torch_piecewise.cudagraphs.base import Value
from torch_piecewise.errors import ConfigError, StaticGraphError


@contextlib.contextmanager
def plain_tensors() -> Iterator[None]:
    """Make tensors that can be written in and out of inference mode, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class GrowingBuffer:
    """Memory for one input of any shape: every shape is laid out from the same first byte on.

    A slice of a larger tensor would not do: cut at a dim that is not the first, it has other strides than
    the input, and compiled code relies on those.

    Args:
        memory: memory to begin with, contiguous; None to make it when it is first needed.

    Raises:
        ConfigError: ``memory`` is not contiguous.
    """

    def __init__(self, memory: torch.Tensor | None = None) -> None:
        if memory is not None and not memory.is_contiguous():
            raise ConfigError(
                "An input buffer is not contiguous",
                expected="a contiguous tensor",
                got=f"size {list(memory.shape)}, strides {list(memory.stride())}",
            )
        self.memory = memory

    def reserve(self, size: Sequence[int], like: torch.Tensor) -> bool:
        """Make room for tensors of ``size`` with ``like``'s dtype on its device.

        Memory that is made here has that size, so that people who look at it see what they expect.

        Returns:
            Whether memory that was in use before has been replaced, so that what knows it is stale.

        Raises:
            StaticGraphError: the buffer has another dtype or device than ``like``.
        """
        if self.memory is None:
            self.memory = _zeros(size, like)
            return False
        if self.memory.dtype is not like.dtype or self.memory.device != like.device:
            raise StaticGraphError(
                "An input does not fit the buffer it is to be copied to",
                expected=f"{self.memory.dtype} on {self.memory.device}",
                got=f"{like.dtype} on {like.device}",
            )
        if self.memory.numel() >= math.prod(size):
            return False
        self.memory = _zeros(size, like)
        return True

    def view(self, size: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
        """The buffer's beginning as a tensor; room for it has been reserved."""
        assert self.memory is not None
        with plain_tensors():
            return self.memory.as_strided(tuple(size), tuple(stride), self.memory.storage_offset())


def make_copy_and_call(
    sym_tensor_indices: Sequence[int],
    input_buffers: Sequence[torch.Tensor | None],
    fn: Callable[..., Any],
    *,
    dims: Mapping[int, int] | None = None,
    largest: int | None = None,
    on_grow: Callable[[], object] | None = None,
) -> Callable[..., Any]:
    """``fn`` with chosen inputs copied to fixed memory first.

    Each chosen input is copied to the beginning of its buffer, laid out as the input is, and ``fn`` is called
    with tensors of the inputs' own sizes there. A call that needs more room than a buffer has gets a larger
    buffer; what was captured on the old one is then dropped through ``on_grow``.

    Args:
        sym_tensor_indices: positions of the inputs to copy.
        input_buffers: one for each of these, in their order: contiguous memory of the input's dtype and
            device, or None to make it at the first call. Lists are kept up to date: a buffer made here, or a
            larger one, is put into the list, so that several callables can share one list. A tuple is read
            once.
        fn: called with all arguments in their order, keyword arguments as they are.
        dims: which dim of an input changes from call to call, by position; 0 where none is given. Matters
            with ``largest`` only: any dim may change.
        largest: largest size of those dims that is expected, so that buffers begin with room for it.
        on_grow: called when a buffer was replaced, before ``fn``. None: ``fn.clear_all_graphs`` where ``fn``
            has that, else nothing.

    Returns:
        The callable. Calls from several threads take turns.

    Raises:
        ConfigError: not one buffer for each index, or a buffer that is not contiguous; from a call: an input
            to copy is missing, is no tensor or lacks its dim.
        StaticGraphError: from a call: an input has another dtype or device than its buffer.
    """
    if len(sym_tensor_indices) != len(input_buffers):
        raise ConfigError(
            "make_copy_and_call needs one buffer for each input it copies",
            expected=f"{len(sym_tensor_indices)} buffers (None for those yet to be made)",
            got=str(len(input_buffers)),
        )
    for buffer in input_buffers:
        GrowingBuffer(buffer)
    buffers = input_buffers if isinstance(input_buffers, MutableSequence) else list(input_buffers)
    stale = getattr(fn, "clear_all_graphs", None) if on_grow is None else on_grow
    lock = threading.RLock()

    def copy_and_call(*args: Value, **kwargs: Value) -> Value:
        with lock:
            replaced = False
            copied = list(args)
            for slot, position in enumerate(sym_tensor_indices):
                buffer = GrowingBuffer(buffers[slot])
                dim = (dims or {}).get(position, 0)
                given = _tensor_at(args, position, dim)
                copied[position], grew = _copied(given, buffer, dim, largest)
                buffers[slot] = buffer.memory
                replaced |= grew
            if replaced and stale is not None:
                stale()
            return fn(*copied, **kwargs)

    return copy_and_call


def _tensor_at(args: Sequence[Any], position: int, dim: int) -> torch.Tensor:
    value = args[position] if -len(args) <= position < len(args) else None
    # A tensor without dims has no size to change; it is copied as it is.
    if isinstance(value, torch.Tensor) and (not value.dim() or -value.dim() <= dim < value.dim()):
        return value
    raise ConfigError(
        f"Argument {position} of a call is to be copied to a buffer, and cannot be",
        expected=f"a tensor with a dim {dim}",
        got=f"a tensor of size {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value),
        hint="sym_tensor_indices count positional arguments from 0; `dims` says which of their dims changes",
    )


def _copied(
    tensor: torch.Tensor, buffer: GrowingBuffer, dim: int, largest: int | None
) -> tuple[torch.Tensor, bool]:
    stride = dense_stride(inner_dims_first(tensor), tensor.shape)
    room = list(tensor.shape)
    if buffer.memory is None and largest is not None and room:
        room[dim] = max(room[dim], largest)
    grew = buffer.reserve(room, tensor)
    place = buffer.view(tensor.shape, stride)
    with torch.no_grad():
        place.copy_(tensor)
    return place, grew


def inner_dims_first(tensor: torch.Tensor) -> list[int]:
    """Dims in the order in which they lie in memory.

    The stride of a dim of size 1 says nothing about that order, so contiguous tensors stay contiguous.
    """
    dims = list(reversed(range(tensor.dim())))
    return dims if tensor.is_contiguous() else sorted(dims, key=tensor.stride)


def dense_stride(inner_first: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """Strides without gaps for ``size``."""
    stride = [0] * len(size)
    step = 1
    for dim in inner_first:
        stride[dim] = step
        step *= max(1, size[dim])
    return tuple(stride)


def _zeros(size: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    with plain_tensors():
        # An address even where there is nothing yet.
        return torch.zeros(tuple(size) if math.prod(size) else (1,), dtype=like.dtype, device=like.device)
