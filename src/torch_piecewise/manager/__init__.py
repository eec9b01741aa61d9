"""One piece and one range: remembered, else kept, else compiled; the same thing is never compiled twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch.fx import GraphModule

from torch_piecewise.artifact import Artifact
from torch_piecewise.artifact_store import artifact_ingredients
from torch_piecewise.background import Background
from torch_piecewise.cache_key import Key
from torch_piecewise.compilers import CompileOptions, Compiler, make_compiler
from torch_piecewise.compilers.base import Ambient
from torch_piecewise.config import Config
from torch_piecewise.events import Bus, Counters, PieceCompileStarted
from torch_piecewise.manager.errors import not_a_range, not_kept
from torch_piecewise.manager.index import IndexEntry
from torch_piecewise.manager.loading import Loading
from torch_piecewise.manager.options import bus_with, options_of
from torch_piecewise.manager.shelf import Shelf
from torch_piecewise.manager.store import artifacts_in, store_for
from torch_piecewise.manager.timing import Stopwatch, Timing
from torch_piecewise.manager.units import EVERY_SIZE, Ready, Unit
from torch_piecewise.piece import Piece
from torch_piecewise.pool import CompilePool, CompileTask, default_workers
from torch_piecewise.progress import Progress
from torch_piecewise.ranges import Range
from torch_piecewise.store import OpenStore

if TYPE_CHECKING:
    from torch_piecewise.splitting import SplitItem

__all__ = ["EVERY_SIZE", "CompilerManager", "Ready", "Unit"]

PieceLike: TypeAlias = "Piece | GraphModule | SplitItem"
"""What a manager takes for a piece: its description, its graph, or an item of a cut graph."""


class CompilerManager:
    """Makes pieces ready: from memory, else from the store, else by the compiler, several at once.

    ::

        manager = tp.CompilerManager(tp.Config(backend="inductor"))
        manager.initialize_cache("/var/cache/engine")
        run = manager.compile(item.graph, tp.Range(1, 64))
        manager.save_to_file()

    What is compiled is identified by the range, the structure of the piece and the compiler with its options:
    two pieces alike are one, and each is compiled at most once, among all processes on one root. An artifact
    is kept as soon as it is made. Safe to call from several threads.

    Args:
        config: chooses compiler, options, passes, processes and ``on_piece_error``. Where things are kept
            :meth:`initialize_cache` decides; before it nothing is. None: the defaults.
        bus: also gets the events; its tag says whether this is an encoder. None: :attr:`counters` alone.
        compiler: beats ``config.backend``.
        ambient: torch's settings to compile under; None: as torch is set now.
        background: where :meth:`prepare` is called, if nobody waits for it: what can be compiled on a worker
            process then is.

    Raises:
        ConfigError: the settings name no compiler, no pass, or passes for a compiler that runs none.
        PassError: a pass manager was given as a pass.
    """

    def __init__(
        self,
        config: Config | None = None,
        bus: Bus | None = None,
        *,
        compiler: Compiler | None = None,
        ambient: Ambient | None = None,
        background: Background | None = None,
    ) -> None:
        config = config if config is not None else Config()
        self.config = config
        self.compiler = compiler if compiler is not None else make_compiler(config.backend)
        self.options = options_of(config, self.compiler, ambient if ambient is not None else Ambient.now())
        self.counters = Counters()
        self._stopwatch = Stopwatch()
        self.bus = bus_with((self.counters, self._stopwatch), bus)
        workers = default_workers(config.compile_threads)
        if background is None:
            self._pool = CompilePool(workers, Progress())
        else:
            self._pool = CompilePool(workers, stopped=lambda: background.is_stopped)
        self._shelf = Shelf(self.bus)
        self._loading = Loading(self.compiler, self.bus, eager_on_error=config.on_piece_error == "eager")
        # In the background nobody waits for a compile, so none is one too many.
        self._only_kept = config.on_miss == "error" and background is None
        self._names: dict[tuple[str, Range], str] = {}
        self._ready: dict[tuple[str, Range], Ready] = {}
        self._asked_store: set[tuple[str, Range]] = set()
        self._lock = threading.RLock()

    # -- where things are kept

    def initialize_cache(
        self, cache_dir: str | Path | None = None, disable_cache: bool = False, prefix: str = ""
    ) -> None:
        """Open a root; from now on artifacts are looked up and kept there, and what is ready is kept now.

        Args:
            cache_dir: folder, made where it is missing; None: the config's, else the user's cache directory.
            disable_cache: keep and look up nothing; the other arguments then mean nothing.
            prefix: a part of the root that is apart from others; empty: the one that all models share.

        Raises:
            UntrustedError: others can write to the root; names the command that mends it.
        """
        if disable_cache:
            self._shelf.close()
            return
        place = {} if cache_dir is None else {"cache_dir": str(cache_dir)}
        store = store_for(self.config.replace(disable_cache=False, on_miss="compile", **place))
        assert store is not None
        self.keep_in(store, prefix)
        self._shelf.read_index()

    def keep_in(self, store: OpenStore, prefix: str = "") -> None:
        """As :meth:`initialize_cache`, in a store that is open already; its index is not read."""
        with self._lock:
            ready = [(key, one.artifact) for key, one in self._ready.items() if one.artifact is not None]
            self._shelf.open(artifacts_in(store, self.compiler, self.options, prefix), ready)

    def save_to_file(self) -> int:
        """Write the index of what this manager keeps in the root, beside what others wrote there.

        The artifacts themselves are kept already: a process that ends without this loses none.

        Returns:
            How many artifacts the index lists; 0 where nothing is kept.
        """
        with self._lock:
            entries = [
                IndexEntry(self._names[key], *key, self.compiler.name)
                for key, ready in self._ready.items()
                if ready.artifact is not None
            ]
        return self._shelf.write_index(entries)

    def compute_hash(self) -> str:
        """What identifies artifacts beside piece and range: 64 hexadecimal digits, alike in every process.

        Covers torch, Python, the processor, the kind of device, the compiler with its fingerprint, its
        options, the passes, and torch's settings that the manager compiles under.

        Raises:
            FingerprintError: a pass or setting has no stable identity.
        """
        return Key.of(artifact_ingredients(self.compiler, self.options)).digest()

    # -- one piece

    def load(
        self, piece: PieceLike, range: Range = EVERY_SIZE, example_inputs: Sequence[Any] = ()
    ) -> Callable[..., tuple[Any, ...]] | None:
        """The compiled piece, if there is one: from memory, else from the store.

        Args:
            piece: an item of ``tp.split_graph``, or any graph that carries example values (or gets them from
                ``example_inputs``); or its description.
            range: sizes of the graph's dynamic dim (the first symbol in its inputs' sizes) to serve; the
                default serves every size. Ignored for a graph without one.
            example_inputs: used where the graph carries no example values.

        Returns:
            A function of the piece's inputs in order that returns a tuple; None where there is none, whether
            it was never compiled or what was kept is torn, foreign or of another format: :attr:`misses` and a
            ``StoreLookup`` event say which.

        Raises:
            CompileError: ``piece`` is no graph, or one that is not compiled.
            ArgumentError: ``range`` is no :class:`~torch_piecewise.Range`.
        """
        unit = self._unit(piece, range, example_inputs)
        with self._lock:
            if unit.key in self._ready:
                return self._ready[unit.key].run
            with self._stopwatch.at_work():
                return self._ready[unit.key].run if self._take_kept(unit) else None

    def compile(
        self, piece: PieceLike, range: Range = EVERY_SIZE, example_inputs: Sequence[Any] = ()
    ) -> Callable[..., tuple[Any, ...]]:
        """The compiled piece: what :meth:`load` finds, else compiled now and kept.

        Args:
            piece, range, example_inputs: as for :meth:`load`.

        Returns:
            A function of the piece's inputs in order that returns a tuple.

        Raises:
            PieceCompileError: it failed; names piece, range, op and source line.
            CompilerError: the compiler broke its protocol.
            MissError: it is not kept, and ``on_miss`` is ``"error"``.
            CompileError: ``piece`` is no graph, or one that is not compiled.
            ArgumentError: ``range`` is no :class:`~torch_piecewise.Range`.
        """
        unit = self._unit(piece, range, example_inputs)
        return self.prepare([unit])[unit.key].run

    def artifact(
        self, piece: PieceLike, range: Range = EVERY_SIZE, example_inputs: Sequence[Any] = ()
    ) -> Artifact | None:
        """What the compiled piece was loaded from; ``saved_artifacts.save_artifact`` writes it to a file.

        Args:
            piece, range, example_inputs: as for :meth:`load`.

        Returns:
            None where :meth:`load` finds nothing, and for a piece that runs eagerly because it failed.
        """
        if self.load(piece, range, example_inputs) is None:
            return None
        return self._ready[self._unit(piece, range, example_inputs).key].artifact

    def serves(self, piece: PieceLike, range: Range, inputs: Sequence[Any]) -> bool:
        """Whether what :meth:`compile` returned for ``range`` may be called with these inputs.

        It may where ``range`` has their size, and where what the compiler relied on beside that
        (``Artifact.guards``) holds; ``tp.compile`` asks so for each new size. False where :meth:`load` finds
        nothing.

        Args:
            piece, range: as for :meth:`load`.
            inputs: the piece's inputs, in order.

        Raises:
            ArgumentError: ``inputs`` are others than the piece takes.
            CompileError: ``piece`` is no graph, or one that is not compiled.
        """
        if self.load(piece, range, inputs) is None:
            return False
        # Imported for its cost: it loads torch's symbolic shapes, which a start from the store never needs.
        from torch_piecewise.manager.pieces import piece_of, serves

        ready = self._ready[self._unit(piece, range, inputs).key]
        return serves(piece_of(piece, inputs), range, inputs, ready.artifact)

    def compile_context(self, range: Range) -> AbstractContextManager[object]:
        """What is in force around each compile for ``range``: ``tp.get_pass_context()`` answers inside.

        Raises:
            ConfigError: ``range`` is no :class:`~torch_piecewise.Range`.
        """
        return self.options.context(range)

    # -- what there is

    @property
    def timing(self) -> Timing:
        """How long it took from the first piece to the last so far."""
        return self._stopwatch.timing(is_encoder=self.bus.tag.is_encoder)

    @property
    def index(self) -> tuple[IndexEntry, ...]:
        """What the index of the root listed when it was last read or written; nothing is loaded for it."""
        return self._shelf.index.entries

    @property
    def misses(self) -> tuple[str, ...]:
        """Why look-ups found nothing, each reason once, oldest first; the last 256.

        Also where nothing is looked up: what was asked for, and why not (``disable_cache``).
        """
        return self._shelf.misses

    # -- many at once

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
            MissError: ``on_miss="error"``, and the store lacks one; says which and why.
        """
        with self._lock:
            wanted = {unit.key: unit for unit in units}
            missing = {key: unit for key, unit in wanted.items() if key not in self._ready}
            if missing:
                self._make_ready(missing)
            return {key: self._ready[key] for key in wanted}

    def _make_ready(self, missing: Mapping[tuple[str, Range], Unit]) -> None:
        self._names.update({key: unit.name for key, unit in missing.items()})
        with self._stopwatch.at_work():
            absent = [unit for unit in missing.values() if not self._take_kept(unit)]
            if absent and self._only_kept:
                raise not_kept(absent, self._shelf.misses)
            if absent:
                self._make(absent)

    def _unit(self, piece: PieceLike, range: Range, example_inputs: Sequence[Any]) -> Unit:
        # Imported for its cost: it loads torch's symbolic shapes, which a start from the store never needs.
        from torch_piecewise.manager.pieces import identity, piece_of

        if not isinstance(range, Range):
            raise not_a_range(range)
        described = piece_of(piece, example_inputs)
        serves = range if described.dispatch is not None else EVERY_SIZE
        unit = Unit(identity(described), described.name, serves, lambda _name: described)
        self._names.setdefault(unit.key, unit.name)
        return unit

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

    def _take_kept(self, unit: Unit, *, again: bool = False) -> bool:
        """Load ``unit`` from the store, ``again`` where it was not there just now; whether it could be."""
        found = self._shelf.find(unit, again=again)
        if found is None:
            return False
        try:
            ready = self._loading.loaded(unit, found, "store")
        except Exception as error:  # noqa: BLE001 - whatever a foreign machine's artifact does on loading
            self._shelf.refused(unit, error)
            return False
        self._ready[unit.key] = ready
        self._shelf.served(unit)
        return True

    def _options_for(self, unit: Unit) -> CompileOptions:
        return self.options.for_piece(f"{self.bus.tag.name}.{unit.name}")

    def _make(self, units: list[Unit]) -> None:
        """Compile ``units``, each in its turn among everybody who shares the store."""
        with self._shelf.turns(units):
            # Another process may have made some while this one waited for its turn.
            absent = [unit for unit in units if not self._take_kept(unit, again=True)]
            for unit in absent:
                self.bus.emit(
                    PieceCompileStarted(piece=unit.name, range=unit.range, compiler=self.compiler.name)
                )
            tasks = [
                CompileTask(self.compiler, unit.piece, unit.range, self._options_for(unit)) for unit in absent
            ]
            # Timed here and not around those who ask: pieces are made before calls, in them and beside them.
            with self.bus.phase("compile") if absent else nullcontext():
                for unit, outcome in zip(absent, self._pool.run(tasks), strict=True):
                    ready = self._ready[unit.key] = self._loading.made(unit, outcome)
                    if ready.artifact is not None:
                        self._shelf.keep(unit, ready.artifact)
