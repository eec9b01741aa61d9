"""What a manager makes ready, and what that is when it is ready."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch_piecewise.artifact import Artifact
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import UNBOUNDED, Range

EVERY_SIZE = Range(0, UNBOUNDED)
"""The range of a piece that nobody gave a range: it may be called with any size."""

UNNAMED = "unnamed"
"""How the fingerprint of a piece without a stable identity begins."""


def is_unnamed(fingerprint: str) -> bool:
    """Whether a piece of this fingerprint has no identity that lasts."""
    return fingerprint.startswith(UNNAMED)


BY_HAND = "graph"
"""How a graph is called that has no name of its own."""


@dataclass(frozen=True)
class Unit:
    """What is compiled once: a distinct piece for one range.

    Attributes:
        fingerprint: structural identity of the piece.
        name: of the first piece of that identity.
        range: sizes of the dispatch symbol; ``ANY_SIZE`` where the piece does not have it.
        load: the piece by name; called where it has to be compiled.
    """

    fingerprint: str
    name: str
    range: Range
    load: Callable[[str], Piece]

    @property
    def key(self) -> tuple[str, Range]:
        return self.fingerprint, self.range

    @property
    def label(self) -> str:
        """How messages call it; of graphs without names, which one it is."""
        name = f"{self.name} {self.fingerprint[:8]}" if self.name == BY_HAND else self.name
        return f"{name} {self.range}"

    @property
    def is_unnamed(self) -> bool:
        """Whether the piece holds something without a stable identity, so that it is compiled for itself."""
        return is_unnamed(self.fingerprint)

    @property
    def piece(self) -> Piece:
        """The piece itself."""
        return self.load(self.name)


@dataclass(frozen=True)
class Ready:
    """A unit that can be called.

    Attributes:
        run: takes the piece's inputs in order, returns a tuple.
        artifact: what ``run`` was loaded from; None for a piece that runs eagerly after a failure.
    """

    run: Callable[..., tuple[Any, ...]]
    artifact: Artifact | None
