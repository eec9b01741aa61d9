"""The memory of :class:`~torch_piecewise.cudagraphs.recorder.GraphRecorder`: a pool like a GPU graph's."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch

from torch_piecewise.torch_private.cudagraphs import MemoryWatch, tensor_at

_GARBAGE = 0xFF
"""Bytes that read as NaN in every floating dtype and as -1 in signed integers."""


class _Block:
    """Some bytes, and whoever holds them."""

    def __init__(self, nbytes: int) -> None:
        self.memory = torch.empty(nbytes, dtype=torch.uint8)
        self.address = self.memory.data_ptr()
        self.end = self.address + nbytes
        self.holder: MemoryWatch | None = None
        self.was_held = False

    def is_free(self) -> bool:
        return self.holder is None or self.holder.is_gone()


class RecorderPool:
    """Hands out memory, and hands it out again once no tensor holds it.

    Attributes:
        graphs: recordings that use the pool. While there is one, blocks count as in use.
    """

    def __init__(self) -> None:
        self.graphs: weakref.WeakSet[Any] = weakref.WeakSet()
        self._blocks: list[_Block] = []

    def begin(self, recording: object) -> None:
        """Let ``recording`` use the pool; the first one after all others are gone finds it empty."""
        if not self.graphs:
            self._blocks = [block for block in self._blocks if not block.is_free()]
        self.graphs.add(recording)

    def empty_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Memory for a tensor with the size, stride and dtype of ``tensor``, which has elements."""
        extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        block = self._block(extent * tensor.element_size())
        block.was_held = block.holder is not None
        found = tensor_at(block.address, tensor, tensor.shape, tensor.stride())
        block.holder = MemoryWatch(found)
        return found

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` lies in the pool."""
        address = tensor.data_ptr()
        return any(block.address <= address < block.end for block in self._blocks)

    def content(self, address: int) -> torch.Tensor | None:
        """A copy of the block that begins at ``address``; None where nobody had held it before."""
        block = next(block for block in self._blocks if block.address == address)
        return block.memory.clone() if block.was_held else None

    def put_back(self, contents: Mapping[int, torch.Tensor | None]) -> None:
        """Give blocks, by address, their contents again; where there was none, garbage."""
        for block in self._blocks:
            if block.address in contents:
                content = contents[block.address]
                block.memory.fill_(_GARBAGE) if content is None else block.memory.copy_(content)

    def bytes_in_use(self) -> int:
        """Bytes of all blocks; of those that tensors still hold where no recording is left."""
        counted = self._blocks if self.graphs else [b for b in self._blocks if not b.is_free()]
        return sum(block.memory.numel() for block in counted)

    def _block(self, nbytes: int) -> _Block:
        free = [block for block in self._blocks if block.is_free() and block.memory.numel() >= nbytes]
        if free:
            return min(free, key=lambda block: block.memory.numel())
        self._blocks.append(_Block(nbytes))
        return self._blocks[-1]
