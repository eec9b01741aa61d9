"""What happens to static graphs, as events."""

from __future__ import annotations

from dataclasses import dataclass

from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs.descriptor import BatchDescriptor
from torch_piecewise.events import Event


@dataclass(frozen=True, kw_only=True)
class SizeCaptured(Event):
    """A kind of batch was captured.

    Attributes:
        graphs: how many static graphs it takes.
        seconds: how long it took, warm-up calls not counted.
        memory: bytes that it took from the device beyond what the pool had.
    """

    mode: CUDAGraphMode
    descriptor: BatchDescriptor
    graphs: int
    seconds: float
    memory: int

    def counts(self) -> tuple[tuple[str, int], ...]:
        """Kinds of batches, and the graphs they take."""
        return ("sizes_captured", 1), ("static_graphs", self.graphs)


@dataclass(frozen=True, kw_only=True)
class SizeGivenUp(Event):
    """The graphs of a kind of batch were given up.

    Attributes:
        freed: bytes that the device got back, measured.
    """

    mode: CUDAGraphMode
    descriptor: BatchDescriptor
    freed: int


@dataclass(frozen=True, kw_only=True)
class SizeEvicted(SizeGivenUp):
    """The graphs of a kind of batch were given up to stay within the budget."""

    def counts(self) -> tuple[tuple[str, int], ...]:
        """Kinds of batches."""
        return (("sizes_evicted", 1),)


@dataclass(frozen=True, kw_only=True)
class SizeDropped(SizeGivenUp):
    """The graphs of a kind of batch were given up: they stood on memory that is not used any more."""

    def counts(self) -> tuple[tuple[str, int], ...]:
        """Kinds of batches."""
        return (("sizes_dropped", 1),)


@dataclass(frozen=True, kw_only=True)
class CaptureRefused(Event):
    """A kind of batch stays without a graph."""

    mode: CUDAGraphMode
    descriptor: BatchDescriptor
    reason: str

    def counts(self) -> tuple[tuple[str, int], ...]:
        """Kinds of batches."""
        return (("captures_refused", 1),)
