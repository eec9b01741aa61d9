"""What the demo's files share: its errors."""

from __future__ import annotations

from torch_piecewise.errors import PiecewiseError


class DemoError(PiecewiseError, RuntimeError):
    """The demo cannot run: something is not installed, damaged or too long."""


class CacheOverflow(DemoError):
    """A sequence is longer than the key and value cache of the model."""
