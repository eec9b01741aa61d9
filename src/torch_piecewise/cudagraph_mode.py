"""When calls replay static (CUDA) graphs: the modes, and the questions code asks of them."""

from __future__ import annotations

import enum

STATIC_GRAPH_VERBS = ("capture", "weak", "memory_in_use", "turn")
"""What a class of static graphs has; see ``cudagraphs.StaticGraphBackend``."""


class CUDAGraphMode(enum.Enum):
    """How calls replay static graphs.

    A plain mode (``NONE``, ``PIECEWISE``, ``FULL``) is what one call does. A combined mode is a pair:
    what uniform decode batches do, and what every other (mixed) batch does.
    """

    NONE = 0
    PIECEWISE = 1
    FULL = 2
    FULL_DECODE_ONLY = (FULL, NONE)
    FULL_AND_PIECEWISE = (FULL, PIECEWISE)

    def separate_routine(self) -> bool:
        """Whether decode and mixed batches are treated differently."""
        return isinstance(self.value, tuple)

    def decode_mode(self) -> CUDAGraphMode:
        """What a uniform decode batch does: a plain mode."""
        return CUDAGraphMode(self.value[0]) if isinstance(self.value, tuple) else self

    def mixed_mode(self) -> CUDAGraphMode:
        """What every other batch does: a plain mode."""
        return CUDAGraphMode(self.value[1]) if isinstance(self.value, tuple) else self

    def has_mode(self, mode: CUDAGraphMode) -> bool:
        """Whether some batch is treated as the plain ``mode``."""
        return mode in (self.decode_mode(), self.mixed_mode())

    def requires_piecewise_compilation(self) -> bool:
        """Whether the graph has to be cut for this mode."""
        return self.has_mode(CUDAGraphMode.PIECEWISE)

    def has_piecewise_cudagraphs(self) -> bool:
        """Whether single pieces are captured."""
        return self.has_mode(CUDAGraphMode.PIECEWISE)

    def has_full_cudagraphs(self) -> bool:
        """Whether whole calls are captured for some batch."""
        return self.has_mode(CUDAGraphMode.FULL)

    def max_cudagraph_mode(self) -> CUDAGraphMode:
        """The larger of the decode and the mixed mode: FULL before PIECEWISE before NONE."""
        return max(self.decode_mode(), self.mixed_mode(), key=lambda mode: int(mode.value))

    def __str__(self) -> str:
        return self.name

    def __bool__(self) -> bool:
        return self is not CUDAGraphMode.NONE
