"""What a program is made of: its sizes, and its pieces as far as they are known without their graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import GraphModule

from torch_piecewise.manager.units import Unit
from torch_piecewise.piece import EagerPiece, Piece
from torch_piecewise.ranges import UNBOUNDED, Range

ANY_SIZE = Range(0, UNBOUNDED)
"""The range of a piece that does not have the dispatch symbol: compiled once for all sizes."""


@dataclass(frozen=True)
class Sizes:
    """Which sizes a program is compiled for.

    Attributes:
        dispatch: the symbol the ranges are about; None for a graph without dynamic sizes.
        ranges: disjoint ranges of it, rising; those that the trace does not exclude.
        exact: single sizes that beat the range containing them, likewise.
        symbols: every symbol whose value a call has to look up, the dispatch symbol first.
        names: symbol -> what people call it (``input_ids.0``).
    """

    dispatch: str | None
    ranges: tuple[Range, ...]
    exact: tuple[int, ...] = ()
    symbols: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)


SizeKey = int | tuple[int, ...]
"""One int where one symbol matters, else one per symbol of :attr:`Sizes.symbols`."""


@dataclass(frozen=True)
class PieceInfo:
    """What a program knows of one of its pieces without its graph.

    Attributes:
        name: ``submod_N``.
        fingerprint: structural identity; None for a piece that stays eager.
        symbols: the piece's symbols in their order; artifacts' guards speak of them by position.
        ranged: whether it has the dispatch symbol, so that each range compiles it anew.
    """

    name: str
    fingerprint: str | None
    symbols: tuple[str, ...] = ()
    ranged: bool = False


class Pieces:
    """The pieces of a split graph that are no cuts.

    Args:
        infos: in graph order.
        load: the piece itself by name; called at most once for each, and only where its graph is needed.
    """

    def __init__(self, infos: Sequence[PieceInfo], load: Callable[[str], Piece | EagerPiece]) -> None:
        self.infos = tuple(infos)
        self._load = load
        self._loaded: dict[str, Piece | EagerPiece] = {}
        self._first: dict[str, PieceInfo] = {}
        for info in self.infos:
            if info.fingerprint is not None:
                self._first.setdefault(info.fingerprint, info)
        self._representative = {
            info.name: self._first[info.fingerprint].name
            for info in self.infos
            if info.fingerprint is not None
        }

    @property
    def distinct(self) -> int:
        """How many different pieces there are to compile."""
        return len(self._first)

    def graph(self, name: str) -> GraphModule:
        """The graph of one piece, or of one that computes the same."""
        return self.piece(name).graph

    def piece(self, name: str) -> Piece | EagerPiece:
        """One piece by name, or one that computes the same."""
        name = self._representative.get(name, name)
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def needed(self) -> list[str]:
        """Names of the pieces whose graphs another process may need: each distinct one, and eager ones."""
        eager = [info.name for info in self.infos if info.fingerprint is None]
        return [*(info.name for info in self._first.values()), *eager]

    def units(self, wanted: Range) -> dict[str, Unit]:
        """For each piece to compile, the unit that serves ``wanted``."""
        units: dict[str, Unit] = {}
        for info in self.infos:
            if info.fingerprint is not None:
                name = self._first[info.fingerprint].name
                units[info.name] = Unit(
                    info.fingerprint, name, wanted if info.ranged else ANY_SIZE, self._compilable
                )
        return units

    def _compilable(self, name: str) -> Piece:
        piece = self.piece(name)
        assert isinstance(piece, Piece)
        return piece
