"""A traced graph as it runs: cut, compiled for ranges and sizes, stitched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum, auto
from typing import Any

from torch_piecewise.artifact import Artifact, guard_name
from torch_piecewise.compilers.base import Knowing
from torch_piecewise.cudagraphs.breakable import capture_in_progress, opaque_call, partitioned_call
from torch_piecewise.dispatch import SizeTable, serving_range
from torch_piecewise.errors import ConfigError, GuardError
from torch_piecewise.guard_policy import limit_error
from torch_piecewise.manager import Ready
from torch_piecewise.program_pieces import ANY_SIZE as ANY_SIZE
from torch_piecewise.program_pieces import PieceInfo as PieceInfo
from torch_piecewise.program_pieces import Pieces as Pieces
from torch_piecewise.program_pieces import SizeKey as SizeKey
from torch_piecewise.program_pieces import Sizes as Sizes
from torch_piecewise.ranges import Range
from torch_piecewise.relations import Relation, readable
from torch_piecewise.replay_facts import ReplayFacts
from torch_piecewise.stitching import Runner, Stitched
from torch_piecewise.supply import Supply, Tiers


class LineKind(Enum):
    """How the straight line is bound."""

    PLAIN = auto()
    """Splitting ops are called by their bodies."""

    UNDER_MODES = auto()
    """Splitting ops go through the dispatcher, where something watches it."""

    CAPTURED = auto()
    """Pieces and cuts are marked for a capture."""


class Program:
    """One traced graph, ready to run for every size it was compiled for.

    Safe to call from several threads. ``table.lookup(key)`` is the hot path; ``find(key)`` is what a caller
    does when that returns None.

    Args:
        stitched: the straight line, calling cut ops through the dispatcher.
        body_of: for an op, the Python body to call instead where nothing watches the dispatcher.
        pieces: what to compile.
        tiers: who makes it ready.
        sizes: for which sizes.
        relations: what the trace relied on.
        cuts: how many pieces run eagerly because they hold splitting ops.
        facts: what replaying its calls has to know; None where nothing is captured.
    """

    def __init__(
        self,
        *,
        stitched: Stitched,
        body_of: Callable[[Any], Callable[..., Any] | None],
        pieces: Pieces,
        tiers: Tiers,
        sizes: Sizes,
        relations: Sequence[Relation],
        cuts: int,
        facts: ReplayFacts | None = None,
    ) -> None:
        self.cuts = cuts
        self.facts = facts
        self.stitched = stitched
        self.pieces = pieces
        self.sizes = sizes
        self.relations = tuple(relations)
        self._on_change: Callable[[], None] = lambda: None
        self._supply = Supply(tiers, self.look_again, self._settled)
        self._lines = {LineKind.PLAIN: stitched.replaced(body_of), LineKind.UNDER_MODES: stitched}
        if facts is not None:
            self._lines[LineKind.CAPTURED] = facts.line.replaced(body_of)
        self._runners: dict[tuple[Range, LineKind], Runner] = {}
        self._eager: set[tuple[str, Range]] = set()
        self._compared: frozenset[int] = frozenset()
        self._lock = threading.RLock()
        self._around: Callable[[SizeKey, Runner], Runner] = lambda _key, runner: runner
        self.table: SizeTable[SizeKey, Runner] = SizeTable(
            lambda key: self._around(key, self._resolve(key, LineKind.PLAIN))
        )
        self.mode_table: SizeTable[SizeKey, Runner] = SizeTable(self._watched)
        self.capture_table: SizeTable[SizeKey, Runner] = SizeTable(
            lambda key: self._resolve(key, LineKind.CAPTURED)
        )

    def serve_through(
        self, around: Callable[[SizeKey, Runner], Runner], on_change: Callable[[], None] = lambda: None
    ) -> None:
        """Let calls run through what ``around`` makes of each size's straight line.

        Args:
            on_change: called, on any thread, when pieces were replaced by others and no more of that is
                under way; what was taken from ``capture_table`` before still computes the same.
        """
        self._around = around
        self._on_change = on_change
        self.table.forget()

    def _settled(self) -> None:
        self._on_change()

    def rely_on(self, inputs: AbstractSet[int]) -> None:
        """Let pieces take the layout of these inputs (positions) for granted: each call compares it."""
        self._compared = frozenset(inputs)
        self.look_again()

    any_size = ANY_SIZE

    def made(self) -> Mapping[tuple[str, Range], Ready]:
        """What is compiled by now, by fingerprint and range."""
        return self._supply.made()

    def generated_code(self, artifact: Artifact) -> str:
        """The code that the compiler generated, for people; empty where it shows none."""
        return self._supply.generated_code(artifact)

    def prepare(self) -> None:
        """Compile every distinct piece for every range and exact size, all at once.

        Where the background does that, this returns at once.

        Raises:
            PieceCompileError: see :meth:`CompilerManager.prepare`.
        """
        wanted = [*self.sizes.ranges, *(Range(size, size) for size in self.sizes.exact)]
        self._supply.ready(unit for part in wanted for unit in self.pieces.units(part).values())

    def values_of(self, key: SizeKey) -> dict[str, int]:
        """The symbols' values in ``key``, by symbol."""
        values = (key,) if isinstance(key, int) else key
        return dict(zip(self.sizes.symbols, values, strict=False))

    def _watched(self, key: SizeKey) -> Runner:
        """The line for calls that a dispatch mode watches; a recorder of operations may be that mode."""
        line = self._resolve(key, LineKind.UNDER_MODES)
        if self.facts is None:
            return line

        def run(*args: Any) -> tuple[Any, ...]:
            return (self.capture_table.find(key) if capture_in_progress() else line)(*args)

        return run

    def violated(self, key: SizeKey) -> Relation | None:
        """The first condition of the trace that does not hold for a call of these sizes."""
        sizes = self.values_of(key)
        return next((relation for relation in self.relations if not relation.holds(sizes)), None)

    def _resolve(self, key: SizeKey, kind: LineKind) -> Runner:
        sizes = self._checked(key)
        with self._lock:
            return self._runner(sizes, kind)

    def _checked(self, key: SizeKey) -> dict[str, int]:
        violated = self.violated(key)
        if violated is not None:
            raise self.rejection(violated, key)
        return self.values_of(key)

    def _serving(self, sizes: Mapping[str, int]) -> Range:
        if self.sizes.dispatch is None:
            return ANY_SIZE
        return serving_range(sizes[self.sizes.dispatch], self.sizes.ranges, self.sizes.exact)

    def _runner(self, sizes: Mapping[str, int], kind: LineKind) -> Runner:
        serving, ready = self._chosen(sizes)
        if not ready:
            return self._bind(ready, kind, eager=True)
        if (serving, kind) not in self._runners:
            self._runners[serving, kind] = self._bind(ready, kind, eager=False)
        return self._runners[serving, kind]

    def _chosen(self, sizes: Mapping[str, int]) -> tuple[Range, dict[str, Ready]]:
        """What serves these sizes; nothing where what the compilers relied on does not hold for them."""
        serving = self._serving(sizes)
        ready = self._ready(serving)
        if not self._accepted(ready, sizes) and self.sizes.dispatch is not None:
            serving = Range(sizes[self.sizes.dispatch], sizes[self.sizes.dispatch])
            ready = self._ready(serving)
        return serving, ready if self._accepted(ready, sizes) else {}

    def chosen(self, key: SizeKey) -> tuple[Range, dict[str, Ready]]:
        """The range that serves a call, and its pieces by name; one that is not there runs eagerly.

        Raises:
            GuardError: the program was not traced for such sizes.
        """
        sizes = self._checked(key)
        with self._lock:
            return self._chosen(sizes)

    def run_eagerly(self, slow: Iterable[tuple[str, Range]]) -> None:
        """From now on run these pieces (fingerprint, range) as they were traced."""
        with self._lock:
            self._eager.update(slow)
        self.look_again()
        self._on_change()

    def eager_pieces(self) -> tuple[str, ...]:
        """Pieces that run as they were traced for some size because compiling failed, or made them slower.

        Those that are still being compiled in the background are not among them.
        """
        with self._lock:
            given_up = {fingerprint for fingerprint, _range in self._eager | self._supply.given_up()}
        return tuple(info.name for info in self.pieces.infos if info.fingerprint in given_up)

    def is_compiled(self) -> bool:
        """Whether no piece that was asked for so far is without what a compiler makes of it."""
        lacking = {fingerprint for fingerprint, _range in self._supply.lacking()}
        return not any(info.fingerprint in lacking for info in self.pieces.infos)

    def look_again(self) -> None:
        """There is something better to run than before: the next call of each size finds it."""
        with self._lock:
            self._runners.clear()
            for table in (self.table, self.mode_table, self.capture_table):
                table.forget()

    def _ready(self, serving: Range) -> dict[str, Ready]:
        units = self.pieces.units(serving)
        ready = self._supply.ready(units.values())
        missing = self._eager | {unit.key for unit in units.values() if unit.key not in ready}
        return {
            name: Ready(self.pieces.graph(name).forward, None) if unit.key in missing else ready[unit.key]
            for name, unit in units.items()
        }

    def _accepted(self, ready: Mapping[str, Ready], sizes: Mapping[str, int]) -> bool:
        """Whether what the compilers relied on beside the range holds for these sizes."""
        for info in self.pieces.infos:
            one = ready.get(info.name)
            if one is None or one.artifact is None or not one.artifact.guards:
                continue
            values = {guard_name(i): sizes[s] for i, s in enumerate(info.symbols) if s in sizes}
            if not all(Relation(text).holds(values) for text in one.artifact.guards):
                return False
        return True

    def _bind(self, ready: Mapping[str, Ready], kind: LineKind, *, eager: bool) -> Runner:
        callables = self._callables(ready, eager=eager)
        if kind is LineKind.CAPTURED:
            in_parts = self.facts is not None and self.facts.partitioned
            marked = partitioned_call if in_parts else opaque_call
            callables = {name: marked(run) for name, run in callables.items()}
        return self._lines[kind].bind(callables)

    def artifacts(self, serving: Range) -> dict[str, Artifact | None]:
        """What each piece was compiled to for one of the program's ranges; None for one that runs eagerly."""
        return {name: one.artifact for name, one in self._ready(serving).items()}

    def callables(self, size: int) -> dict[str, Callable[..., Any]]:
        """What the straight line calls for a size of the dispatch dim, by piece."""
        return self._callables(self._ready(self._serving({self.sizes.dispatch or "": size})), eager=False)

    def _callables(self, ready: Mapping[str, Ready], *, eager: bool) -> dict[str, Callable[..., Any]]:
        found: dict[str, Callable[..., Any]] = {}
        for name in self.stitched.pieces:
            one = ready.get(name)
            found[name] = self.pieces.graph(name).forward if eager or one is None else self._run_of(name, one)
        return found

    def _run_of(self, name: str, ready: Ready) -> Callable[..., Any]:
        taken = self.stitched.inputs[name].items()
        compared = frozenset(at for at, argument in taken if argument in self._compared)
        return ready.run.knowing(compared) if isinstance(ready.run, Knowing) else ready.run

    def rejection(self, relation: Relation, key: SizeKey) -> GuardError | ConfigError:
        """What a call of these sizes is told, that violates ``relation``."""
        names = self.sizes.names
        got = [f"{readable(symbol, names)}={value}" for symbol, value in self.values_of(key).items()]
        if relation.promised_by:
            return limit_error(", ".join(got), readable(relation.text, names))
        return GuardError(
            "The sizes of this call are outside what the program was traced for",
            expected=relation.shown(names),
            got=", ".join(got),
            hint="on_guard_failure='recompile' traces again for such sizes",
        )
