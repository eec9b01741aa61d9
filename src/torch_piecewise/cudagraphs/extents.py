"""Which dims of a call's tensors follow the size of the call, and how."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """A dim of a tensor whose size is ``scale * n + offset``, where ``n`` is the size of the call.

    Attributes:
        dim: which dim; negative counts from the last.
    """

    dim: int
    scale: int = 1
    offset: int = 0

    def of(self, size: int) -> int:
        """Size of the dim in a call of ``size``."""
        return self.scale * size + self.offset

    def size_from(self, extent: int) -> int:
        """Size of a call whose tensor has ``extent`` here."""
        return (extent - self.offset) // self.scale


@dataclass(frozen=True, slots=True)
class DynamicInput:
    """A tensor argument that changes from call to call.

    Attributes:
        extents: dims that follow the size of the call; may be empty for an input of fixed shape.
        pad_value: what the part beyond the size of a call is filled with, and all of it in a warm-up. None
            leaves what is there (zeros at first), which saves a small kernel.
        copy_back: whether the model writes to it; what it wrote is then copied to the caller's tensor.
    """

    extents: tuple[Extent, ...] = (Extent(0),)
    pad_value: float | int | bool | None = 0
    copy_back: bool = False
