"""Cache layers that write into memory reserved for them, instead of copying all they hold at each step."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class ReservedLayer(DynamicLayer):  # type: ignore[misc]  # an extra, without types where it is absent
    """A ``DynamicLayer`` whose keys and values are the filled part of a buffer.

    Args:
        capacity: positions to reserve at once; longer sequences double it.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self._key_buffer: Tensor | None = None
        self._value_buffer: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append ``[batch, heads, new, head_dim]``, and return all that is kept."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        self._key_buffer, self.keys = self._append(self._key_buffer, self.keys, past, key_states)
        self._value_buffer, self.values = self._append(self._value_buffer, self.values, past, value_states)
        return self.keys, self.values

    def _append(self, buffer: Tensor | None, kept: Tensor, past: int, new: Tensor) -> tuple[Tensor, Tensor]:
        end = past + new.shape[-2]
        fits = buffer is not None and buffer.shape[0] == new.shape[0] and end <= buffer.shape[-2]
        if not fits:
            reserved = self.capacity if end <= self.capacity else 2 * end
            buffer = new.new_empty((*new.shape[:-2], reserved, new.shape[-1]))
        assert buffer is not None
        # Reordered, selected and moved caches hold tensors of their own.
        if past and kept.data_ptr() != buffer.data_ptr():
            buffer[..., :past, :] = kept
        buffer[..., past:end, :] = new
        return buffer, buffer[..., :end, :]

    def reset(self) -> None:
        """Forget everything, the buffers too."""
        super().reset()
        self._key_buffer = self._value_buffer = None


def reserve(cache: Any, capacity: int) -> None:
    """Let the empty layers of ``cache`` that grow by copying reserve ``capacity`` positions instead."""
    if not isinstance(cache, DynamicCache):
        return
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and not layer.is_initialized:
            cache.layers[index] = ReservedLayer(capacity)
