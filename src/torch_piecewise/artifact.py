"""What a compiler hands back: bytes that can be kept, or a callable that cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch_piecewise.ranges import Range


def guard_name(position: int) -> str:
    """How an artifact's guards call the symbol at ``position`` of its piece's symbols."""
    return f"size{position}"


@dataclass(frozen=True)
class Artifact:
    """One compiled piece for one range, as a value: no live state, safe to pickle and to store.

    Attributes:
        compiler: name of the compiler that made it and can load it.
        piece: name of the piece it was made from (``piece.name``), for people: pieces alike share it.
        range: the sizes of the dispatch dim it is valid for.
        payload: what the compiler's ``load`` needs.
        guards: conditions beside the range that the compiler relied on: Python expressions over ``size0``,
            ``size1``, ... (:func:`guard_name`) for the piece's symbols in their order, so that pieces alike
            can share the artifact. ``tp.compile`` and ``CompilerManager.serves`` check them.
        files: name -> bytes, or a file that holds them, of what the payload refers to (shared objects).
        meta: small JSON-able facts (format, compile seconds, file names); never needed to run.
    """

    compiler: str
    piece: str
    range: Range
    payload: bytes
    guards: tuple[str, ...] = ()
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_storable(self) -> bool:
        """Whether :attr:`payload` is all there is."""
        return True


@dataclass(frozen=True)
class LiveArtifact(Artifact):
    """An artifact of a compiler that cannot serialise: lives and dies with the process.

    Attributes:
        runnable: the compiled callable itself.
    """

    payload: bytes = b""
    runnable: Callable[..., Any] | None = None

    @property
    def is_storable(self) -> bool:
        return False
