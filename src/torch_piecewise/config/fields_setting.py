"""What is said of each setting beside its default."""

from __future__ import annotations

from dataclasses import dataclass

from torch_piecewise.config.kinds import Kind

CAPTURE_SIZES = "cudagraph_capture_sizes"
"""The word that stands for the capture sizes among ``compile_sizes``."""


@dataclass(frozen=True)
class Setting:
    """What a field's metadata says about it.

    Attributes:
        kind: which values it takes.
        doc: what it means, its unit, and what None means.
        used_by: the module that acts on it.
        keyed: whether it can change what is compiled, and so belongs into cache keys.
    """

    kind: Kind
    doc: str
    used_by: str
    keyed: bool = True


def setting(kind: Kind, doc: str, used_by: str, *, keyed: bool = True) -> dict[str, Setting]:
    """The metadata of a field with this :class:`Setting`."""
    return {"setting": Setting(kind, doc, used_by, keyed)}
