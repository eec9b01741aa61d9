"""One piece and one range: remembered, else compiled; the same thing is never compiled twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch_piecewise.artifact import Artifact
from torch_piecewise.artifact_store import ArtifactStore
from torch_piecewise.compilers.base import CompileOptions, Compiler
from torch_piecewise.compilers.pass_records import pass_records
from torch_piecewise.errors import CompilerError, PassError, PieceCompileError, PiecewiseError
from torch_piecewise.events import (
    Bus,
    PieceCompiled,
    PieceCompileStarted,
    PieceFailed,
    PieceLoaded,
    StoreLookup,
)
from torch_piecewise.piece import Piece
from torch_piecewise.pool import CompilePool, CompileTask, Outcome
from torch_piecewise.ranges import Range
from torch_piecewise.store import Hit, Miss


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


class CompilerManager:
    """Makes units ready: from memory, else by the compiler, several at once where that pays.

    Args:
        compiler: makes and loads artifacts.
        options: passed on to the compiler.
        pool: where compiling happens.
        bus: gets an event for each artifact compiled, loaded or failed.
        on_piece_error: ``"raise"``, or ``"eager"`` to run a piece that fails to compile as it was traced.
        kept: where artifacts are looked up first and kept after; None to keep nothing.
    """

    def __init__(
        self,
        compiler: Compiler,
        options: CompileOptions,
        pool: CompilePool,
        bus: Bus,
        on_piece_error: str = "raise",
        kept: ArtifactStore | None = None,
    ) -> None:
        self.compiler = compiler
        self.options = options
        self.bus = bus
        self._pool = pool
        self._kept = kept
        self._eager_on_error = on_piece_error == "eager"
        self._ready: dict[tuple[str, Range], Ready] = {}
        self._asked_store: set[tuple[str, Range]] = set()
        self._lock = threading.RLock()

    def warm_up(self, devices: frozenset[str]) -> None:
        """Begin what the first compilation needs, because there will be one soon.

        Args:
            devices: types of the devices that will be compiled for (``cpu``).
        """
        self._pool.warm_up(self.compiler, self.options, devices)

    def prepare(self, units: Iterable[Unit]) -> Mapping[tuple[str, Range], Ready]:
        """Make every unit ready; each distinct one is compiled at most once.

        Raises:
            PieceCompileError: a piece failed; names piece, range, op and source line. Nothing of this call
                is remembered that was not complete.
        """
        with self._lock:
            wanted = {unit.key: unit for unit in units}
            missing = {key: unit for key, unit in wanted.items() if key not in self._ready}
            absent = [unit for unit in missing.values() if not self._take_kept(unit)]
            if absent:
                self._make(absent)
            return {key: self._ready[key] for key in wanted}

    def kept(self, units: Iterable[Unit]) -> Mapping[tuple[str, Range], Ready]:
        """Those of ``units`` that are ready, or that the store has; nothing is compiled, nobody waits.

        The store is asked once for each.
        """
        found: dict[tuple[str, Range], Ready] = {}
        for unit in units:
            if unit.key not in self._ready and unit.key not in self._asked_store:
                self._asked_store.add(unit.key)
                self._take_kept(unit)
            if unit.key in self._ready:
                found[unit.key] = self._ready[unit.key]
        return found

    def made(self) -> Mapping[tuple[str, Range], Ready]:
        """What is ready by now, by fingerprint and range."""
        return self._ready.copy()

    def _take_kept(self, unit: Unit) -> bool:
        """Load ``unit`` from the store; whether it was there and could be loaded."""
        if self._kept is None:
            return False
        what = f"{unit.name} {unit.range}"
        found = self._kept.find(unit.fingerprint, unit.range)
        if isinstance(found, Hit):
            try:
                self._ready[unit.key] = self._load(unit, found.value, "store")
            except Exception as error:  # noqa: BLE001 - whatever a foreign machine's artifact does on loading
                found = Miss(f"it does not load here: {error!r}")
        reason = found.reason if isinstance(found, Miss) else ""
        self.bus.emit(StoreLookup(what=what, hit=not reason, reason=reason))
        return not reason

    def _make(self, units: list[Unit]) -> None:
        """Compile ``units``, each in its turn among everybody who shares the store."""
        turns = self._kept.flights([unit.key for unit in units]) if self._kept is not None else nullcontext()
        with turns:
            # Another process may have made some while this one waited for its turn.
            absent = units if self._kept is None else [unit for unit in units if not self._take_kept(unit)]
            for unit in absent:
                self.bus.emit(
                    PieceCompileStarted(piece=unit.name, range=unit.range, compiler=self.compiler.name)
                )
            tasks = [CompileTask(self.compiler, unit.piece, unit.range, self.options) for unit in absent]
            made = list(zip(absent, self._pool.run(tasks), strict=True))
            for unit, outcome in made:
                self._ready[unit.key] = self._finish(unit, outcome)

    def _finish(self, unit: Unit, outcome: Outcome) -> Ready:
        result, seconds, ended = outcome
        if isinstance(result, BaseException):
            return self._failed(unit, result)
        if not isinstance(result, Artifact):
            raise CompilerError(
                f"Compiler {self.compiler.name!r} returned no artifact for {unit.name}",
                expected="an Artifact",
                got=repr(result),
                hint="Compiler.compile(piece, range, options) has to return an Artifact",
            )
        for record in pass_records(result.meta, unit.name, unit.range):
            self.bus.emit(record)
        self.bus.emit(
            PieceCompiled(
                piece=unit.name,
                range=unit.range,
                compiler=self.compiler.name,
                seconds=seconds,
                fingerprint=unit.fingerprint,
                at=ended,
            )
        )
        ready = self._load(unit, result, "compiled")
        if self._kept is not None:
            self._kept.keep(unit.fingerprint, result)
        return ready

    def _load(self, unit: Unit, artifact: Artifact, source: str) -> Ready:
        start = time.monotonic()
        run = self.compiler.load(artifact)
        if not callable(run):
            raise CompilerError(
                f"Compiler {self.compiler.name!r} loaded nothing that can be called for {unit.name}",
                expected="a callable",
                got=repr(run),
            )
        self.bus.emit(
            PieceLoaded(
                piece=unit.name,
                range=unit.range,
                compiler=self.compiler.name,
                source=source,
                seconds=time.monotonic() - start,
                fingerprint=unit.fingerprint,
            )
        )
        return Ready(run, artifact)

    def _failed(self, unit: Unit, error: BaseException) -> Ready:
        if not isinstance(error, Exception):
            raise error
        self.bus.emit(
            PieceFailed(
                piece=unit.name,
                range=unit.range,
                reason=_first_line(error),
                fingerprint=unit.fingerprint,
            )
        )
        if self._eager_on_error:
            return Ready(unit.piece.graph.forward, None)
        if isinstance(error, CompilerError):
            raise error
        if (broken := _pass_error(error)) is not None:
            raise PieceCompileError(
                f"{unit.name} failed to compile for sizes {unit.range} with {self.compiler.name!r}: "
                f"{broken.what}",
                expected=broken.expected,
                got=broken.got,
                hint=broken.hint,
            ) from error
        # Imported for its cost: it loads torch's symbolic shapes, which a start from the store never needs.
        from torch_piecewise.torch_private.nodes import source_line

        operation, line = source_line(error, unit.piece.graph)
        raise PieceCompileError(
            f"{unit.name} failed to compile for sizes {unit.range} with {self.compiler.name!r}",
            expected="a piece that the compiler accepts",
            got=f"{type(error).__name__}: {_first_line(error)}",
            hint=f"the failing op is {operation}, from {line}; "
            "on_piece_error='eager' runs this piece uncompiled",
        ) from error


def _pass_error(error: BaseException | None) -> PassError | None:
    """The graph pass's error that ``error`` was raised for, if it was."""
    while error is not None and not isinstance(error, PassError):
        error = getattr(error, "inner_exception", None) or error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    text = error.what if isinstance(error, PiecewiseError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
