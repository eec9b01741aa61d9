"""A traced graph as it runs: cut, compiled for ranges and sizes, stitched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch_piecewise.describe import EagerPiece
from torch_piecewise.dispatch import SizeTable, serving_range
from torch_piecewise.errors import GuardError
from torch_piecewise.manager import CompilerManager, Ready, Unit
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import UNBOUNDED, Range
from torch_piecewise.relations import Relation
from torch_piecewise.stitching import Runner, Stitched

ANY_SIZE = Range(0, UNBOUNDED)
"""The range of a piece that does not have the dispatch symbol: compiled once for all sizes."""


@dataclass(frozen=True)
class Sizes:
    """Which sizes a program is compiled for.

    Attributes:
        dispatch: the symbol the ranges are about; None for a graph without dynamic sizes.
        ranges: disjoint ranges of it, rising.
        exact: single sizes that beat the range containing them.
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
class CompiledPieces:
    """The compiled side of a split graph.

    Attributes:
        described: every piece that is no cut, in graph order.
        fingerprints: name of a piece to compile -> its structural identity.
    """

    described: tuple[Piece | EagerPiece, ...]
    fingerprints: Mapping[str, str]

    @property
    def to_compile(self) -> tuple[Piece, ...]:
        return tuple(piece for piece in self.described if isinstance(piece, Piece))

    @property
    def distinct(self) -> int:
        """How many different pieces there are to compile."""
        return len(set(self.fingerprints.values()))

    def units(self, wanted: Range) -> dict[str, Unit]:
        """For each piece to compile, the unit that serves ``wanted``."""
        units: dict[str, Unit] = {}
        first: dict[str, Piece] = {}
        for piece in self.to_compile:
            fingerprint = self.fingerprints[piece.name]
            representative = first.setdefault(fingerprint, piece)
            units[piece.name] = Unit(
                fingerprint, representative, wanted if piece.dispatch is not None else ANY_SIZE
            )
        return units


class Program:
    """One traced graph, ready to run for every size it was compiled for.

    Safe to call from several threads. ``table.lookup(key)`` is the hot path; ``find(key)`` is what a caller
    does when that returns None.

    Args:
        stitched: the straight line that calls cut ops' bodies directly.
        through_dispatcher: the same through the dispatcher, for calls under a dispatch mode.
        pieces: what to compile.
        manager: makes it ready.
        sizes: for which sizes.
        relations: what the trace relied on.
        cuts: how many pieces run eagerly because they hold splitting ops.
    """

    def __init__(
        self,
        *,
        stitched: Stitched,
        through_dispatcher: Stitched,
        pieces: CompiledPieces,
        manager: CompilerManager,
        sizes: Sizes,
        relations: Sequence[Relation],
        cuts: int,
    ) -> None:
        self.cuts = cuts
        self.stitched = stitched
        self.pieces = pieces
        self.sizes = sizes
        self.relations = tuple(relations)
        self._manager = manager
        self._lines = (stitched, through_dispatcher)
        self._runners: dict[tuple[Range, bool], Runner] = {}
        self._lock = threading.RLock()
        self.table: SizeTable[SizeKey, Runner] = SizeTable(lambda key: self._resolve(key, modes=False))
        self.mode_table: SizeTable[SizeKey, Runner] = SizeTable(lambda key: self._resolve(key, modes=True))

    def prepare(self) -> None:
        """Compile every distinct piece for every range and exact size, all at once.

        Raises:
            PieceCompileError: see :meth:`CompilerManager.prepare`.
        """
        wanted = [*self.sizes.ranges, *(Range(size, size) for size in self.sizes.exact)]
        self._manager.prepare(unit for part in wanted for unit in self.pieces.units(part).values())

    def values_of(self, key: SizeKey) -> dict[str, int]:
        """The symbols' values in ``key``, by symbol."""
        values = (key,) if isinstance(key, int) else key
        return dict(zip(self.sizes.symbols, values, strict=False))

    def _resolve(self, key: SizeKey, *, modes: bool) -> Runner:
        sizes = self.values_of(key)
        for relation in self.relations:
            if not relation.holds(sizes):
                raise self._rejected(relation, sizes)
        with self._lock:
            return self._runner(self._serving(sizes), sizes, modes)

    def _serving(self, sizes: Mapping[str, int]) -> Range:
        if self.sizes.dispatch is None:
            return ANY_SIZE
        return serving_range(sizes[self.sizes.dispatch], self.sizes.ranges, self.sizes.exact)

    def _runner(self, serving: Range, sizes: Mapping[str, int], modes: bool) -> Runner:
        ready = self._ready(serving)
        if not self._artifacts_accept(ready, sizes) and self.sizes.dispatch is not None:
            serving = Range(sizes[self.sizes.dispatch], sizes[self.sizes.dispatch])
            ready = self._ready(serving)
        if not self._artifacts_accept(ready, sizes):
            return self._bind(ready, modes, eager=True)
        if (serving, modes) not in self._runners:
            self._runners[serving, modes] = self._bind(ready, modes, eager=False)
        return self._runners[serving, modes]

    def _ready(self, serving: Range) -> dict[str, Ready]:
        units = self.pieces.units(serving)
        ready = self._manager.prepare(units.values())
        return {name: ready[unit.key] for name, unit in units.items()}

    @staticmethod
    def _artifacts_accept(ready: Mapping[str, Ready], sizes: Mapping[str, int]) -> bool:
        texts = {text for one in ready.values() if one.artifact is not None for text in one.artifact.guards}
        return all(Relation(text).holds(sizes) for text in texts)

    def _bind(self, ready: Mapping[str, Ready], modes: bool, *, eager: bool) -> Runner:
        callables: dict[str, Callable[..., Any]] = {}
        line = self._lines[modes]
        graphs = {piece.name: piece.graph for piece in self.pieces.described}
        for name in line.pieces:
            one = ready.get(name)
            callables[name] = graphs[name].forward if eager or one is None else one.run
        return line.bind(callables)

    def _rejected(self, relation: Relation, sizes: Mapping[str, int]) -> GuardError:
        named = {self.sizes.names.get(symbol, symbol): value for symbol, value in sizes.items()}
        text = relation.text
        for symbol, name in self.sizes.names.items():
            text = text.replace(symbol, name)
        return GuardError(
            "The sizes of this call are outside what the program was traced for",
            expected=f"{text}{f' (asked by {relation.where})' if relation.where else ''}",
            got=", ".join(f"{name}={value}" for name, value in named.items()),
            hint="on_guard_failure='recompile' traces again for such sizes",
        )
