"""A capture that the device could not make: no memory, or a device class that fails."""

from __future__ import annotations

from torch_piecewise.errors import StaticGraphError


class CaptureFailed(StaticGraphError):
    """A device could not capture; what the model itself raises is not this.

    Attributes:
        has_run: whether something that runs eagerly between graphs had run before.
    """

    has_run: bool = False


def capture_failed(error: Exception) -> CaptureFailed:
    """The failure that ``error`` is, for people."""
    first = str(error).strip().partition("\n")[0]
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return CaptureFailed(
        f"capture failed: {text}",
        hint="the size runs compiled; warmup() tries again; smaller cudagraph_capture_sizes take less memory",
    )
