"""Programs in the store: find one for a callable, and keep one after it was compiled.

A callable's programs share a key made of everything that can change them before a trace: versions, settings,
the code and state of the model. Which of them serves a call, the call's own guards decide. What a trace
found out on top (the files it read) is kept with the program and verified before it is used.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch_piecewise.cache_key import (
    CpuRequirement,
    Ingredient,
    Key,
    Nearest,
    architecture_ingredient,
    compiler_ingredient,
    device_ingredient,
    differences,
    explain_miss,
    function_ingredients,
    host_cpu,
    ingredients_from_json,
    library_ingredient,
    module_tree_ingredients,
    nearest,
    passes_ingredient,
    python_ingredient,
    source_ingredients,
    sources_again,
    tag_ingredient,
    threads_ingredient,
    topology_ingredient,
    torch_ingredient,
    variables_ingredient,
)
from torch_piecewise.compilers import fingerprint_of
from torch_piecewise.compilers.base import Ambient, Compiler
from torch_piecewise.config import Config
from torch_piecewise.entry import CallShape, Entry
from torch_piecewise.errors import FingerprintError
from torch_piecewise.events import Bus, StoreLookup
from torch_piecewise.graph_bytes import from_bytes, to_bytes
from torch_piecewise.ignoring import is_ignored
from torch_piecewise.managers import Managers
from torch_piecewise.passes.plan import PassPlan
from torch_piecewise.program import Pieces, Program
from torch_piecewise.record import ProgramRecord
from torch_piecewise.splitting_ops import SplittingOp, body_lookup, splitting_op_named
from torch_piecewise.store import BlobRef, Cause, Draft, Hit, Miss, Namespace, OpenStore
from torch_piecewise.store.base import Json

logger = logging.getLogger("torch_piecewise")

KIND = "program"
MOST = 16
"""Programs of one callable that are looked for."""


@dataclass(frozen=True)
class Callee:
    """What is compiled, as the key describes it.

    Attributes:
        function: the traced function, unbound.
        owner: the module or object it is bound to, or None.
        tag: which part of a model it is.
        is_encoder: as given to ``set_model_tag``.
    """

    function: Any
    owner: Any
    tag: str
    is_encoder: bool = False

    @property
    def name(self) -> str:
        """Of the class or function."""
        return type(self.owner).__qualname__ if self.owner is not None else str(self.function.__qualname__)

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"program {self.name!r} ({self.tag})"


class Keeper:
    """Finds and keeps the programs of one callable.

    Args:
        store: the open root.
        callee: what is compiled.
        config: its settings.
        compiler: what compiles it.
        bus: gets a :class:`~torch_piecewise.events.StoreLookup` for each program looked for.

    Raises:
        FingerprintError: the callable or its settings hold something without a stable identity.
    """

    def __init__(
        self, store: OpenStore, callee: Callee, config: Config, compiler: Compiler, bus: Bus
    ) -> None:
        self._store = store.in_namespace(Namespace(callee.tag, *_rank()))
        self.callee = callee
        self._bus = bus
        self._told: set[str] = set()
        self._last_reason = ""
        self._host = host_cpu()
        self.key = Key.of(_ingredients(callee, config, compiler, PassPlan.for_compile(config), self._host))

    def load(self, shape: CallShape, managers: Managers) -> Iterator[Entry]:
        """Every kept program of the callable that is still true, as entries; says why one is not."""
        for number in range(MOST):
            found = self._store.store.get(self._digest(number))
            if isinstance(found, Miss):
                if number == 0 and (not found.reason or found.cause.value == "absent"):
                    close = self._nearest()
                    is_news = close is not None and not _is_another_product(close)
                    self._missed(explain_miss(self.callee.label, close), is_news=is_news)
                elif number == 0:
                    # A root that cannot be used has told so itself.
                    self._missed(found.reason, is_news=found.cause is not Cause.UNAVAILABLE)
                return
            reason = self._stale(found.value)
            loaded = self._read(found.value) if reason is None else Miss(reason)
            if isinstance(loaded, Miss):
                self._missed(f"{self.callee.label} is kept but not used: {loaded.reason}")
                continue
            self._bus.emit(StoreLookup(what=self.callee.label, hit=True))
            yield self._entry(found.value, loaded.value, shape, managers)

    def ingredients(self) -> str:
        """What the key is made of, as JSON text."""
        return json.dumps(self.key.as_json(), indent=1)

    def why_missed(self) -> str:
        """Why :meth:`load` found nothing that serves."""
        return self._last_reason or self.why()

    def why(self) -> str:
        """One line: the nearest kept program and what differs."""
        return explain_miss(self.callee.label, self._nearest())

    def _nearest(self) -> Nearest[Any] | None:
        programs = [entry for entry in self._store.store.entries() if entry.meta.get("kind") == KIND]
        return nearest(self._numbered(0), programs)

    def turn(self) -> Any:
        """Be the only one on this root that traces and compiles this callable (a context manager)."""
        return self._store.flights.flight(self.key.digest())

    def keep(self, entry: Entry, sources: Sequence[str], companions: dict[str, str], number: int) -> None:
        """Keep a program that was just compiled; says so where it cannot be.

        Args:
            sources: the files whose code the trace ran through.
            companions: file name -> text for people.
            number: how many programs of the callable were kept before.
        """
        program = entry.program
        infos = program.pieces.infos
        if any(info.fingerprint is not None and info.fingerprint.startswith("unnamed") for info in infos):
            return
        record = ProgramRecord(
            entry.convention,
            program.stitched,
            infos,
            program.sizes,
            program.relations,
            program.cuts,
            Ambient.now(),
            program.facts,
        )
        try:
            blobs: dict[str, bytes | BlobRef] = {"program": to_bytes(record)}
            for name in program.pieces.needed():
                blobs[f"piece:{name}"] = to_bytes(program.pieces.piece(name))
        except FingerprintError as error:
            logger.warning("%s", error)
            return
        key = self._numbered(number)
        meta: dict[str, Json] = {
            "kind": KIND,
            "name": self.callee.name,
            "label": self.callee.label,
            "sources": [list(pair) for pair in source_ingredients(sources).as_json()[1]],
            "cpu": self._host.as_json(),
            "pieces": len(infos),
            "distinct": program.pieces.distinct,
        }
        companions = {**companions, "ingredients.json": json.dumps(key.as_json(), indent=1)}
        self._store.store.put(key.digest(), Draft(key.as_json(), blobs, meta, companions))

    # --

    def _numbered(self, number: int) -> Key:
        return self.key.and_(Ingredient("specialisation", number))

    def _digest(self, number: int) -> str:
        return self._numbered(number).digest()

    def _missed(self, reason: str, *, is_news: bool = True) -> None:
        # Worth a warning where something is kept and does not serve; an empty store is no news.
        self._last_reason = reason
        level = logging.WARNING if is_news else logging.INFO
        if reason not in self._told:  # who waited for a turn looks again
            self._told.add(reason)
            logger.log(level, "%s", reason)
        self._bus.emit(StoreLookup(what=self.callee.label, hit=False, reason=reason))

    def _stale(self, entry: Any) -> str | None:
        needs = CpuRequirement.from_json(entry.meta.get("cpu"))
        unmet = needs.unmet_on(self._host) if needs is not None else ()
        if needs is None or unmet:
            return "; ".join(map(str, unmet)) or "it does not say which CPU it is for"
        try:
            (then,) = ingredients_from_json([["sources", entry.meta.get("sources")]])
            names = [name.name for name in then.value] if isinstance(then.value, tuple) else []
        except (FingerprintError, TypeError, ValueError):
            return "it does not say which files it was traced from"
        changed = differences((sources_again(names),), (then,))
        return "; ".join(map(str, changed)) if changed else None

    def _read(self, entry: Any) -> Hit[ProgramRecord] | Miss:
        if "program" not in entry.blobs:
            return Miss("the entry holds no program")
        data = self._store.store.blobs.read(entry.blobs["program"])
        if isinstance(data, Miss):
            return data
        try:
            record = from_bytes(data.value)
        except Exception as error:  # noqa: BLE001 - a class or op that moved since
            return Miss(f"it refers to something that is not here: {error!r}")
        return Hit(record) if isinstance(record, ProgramRecord) else Miss("the entry holds something else")

    def _entry(
        self,
        kept: Any,
        record: ProgramRecord,
        shape: CallShape,
        managers: Managers,
    ) -> Entry:
        def load(name: str) -> Any:
            data = self._store.store.blobs.read(kept.blobs[f"piece:{name}"])
            if isinstance(data, Miss):
                raise FingerprintError(f"The graph of {name} is damaged", got=data.reason, hint="restart")
            return from_bytes(data.value)

        program = Program(
            stitched=record.stitched,
            body_of=body_lookup(grad_enabled=record.ambient.grad_enabled),
            pieces=Pieces(record.infos, load),
            tiers=managers.of(record.ambient),
            sizes=record.sizes,
            relations=record.relations,
            cuts=record.cuts,
            facts=record.facts,
        )
        return Entry(record.convention, shape, program)


def _is_another_product(found: Nearest[Any]) -> bool:
    """Whether nobody expected it to serve: another compiler's, as of a model compiled before it is baked."""
    return any(one.path == "compiler.name" for one in found.differences)


def _rank() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _ingredients(
    callee: Callee, config: Config, compiler: Compiler, passes: PassPlan | None, host: CpuRequirement
) -> Iterator[Ingredient]:
    rank, world_size = _rank()
    yield tag_ingredient(callee.tag, is_encoder=callee.is_encoder)
    yield library_ingredient()
    yield torch_ingredient()
    yield python_ingredient()
    yield compiler_ingredient(compiler.name, fingerprint_of(compiler))
    yield passes_ingredient(passes.named() if passes is not None else ())
    yield Ingredient("config", tuple(Ingredient(name, text) for name, text in config.as_ingredients()))
    yield architecture_ingredient(host)
    yield device_ingredient(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    yield Ingredient("capability", host.capability)
    yield threads_ingredient()
    yield Ingredient("matmul_precision", torch.get_float32_matmul_precision())
    yield Ingredient("default_dtype", str(torch.get_default_dtype()))
    yield topology_ingredient(rank=rank, world_size=world_size)
    yield variables_ingredient(config.key_environment, os.environ)
    yield function_ingredients("function", {callee.function.__qualname__: callee.function})
    yield function_ingredients("splitting_ops", _bodies(config))
    if isinstance(callee.owner, torch.nn.Module):
        yield Ingredient("ignored", _ignored_classes(callee.owner))
        yield from module_tree_ingredients(callee.owner)


def _ignored_classes(model: torch.nn.Module) -> tuple[Ingredient, ...]:
    """The module classes that stay uncompiled inside the model: they are where it is cut."""
    classes = {type(module) for module in model.modules()}
    names = sorted(f"{cls.__module__}.{cls.__qualname__}" for cls in classes if is_ignored(cls))
    return tuple(Ingredient(name, True) for name in names)


def _bodies(config: Config) -> dict[str, Callable[..., Any]]:
    bodies = {}
    for entry in config.splitting_ops or ():
        op = splitting_op_named(entry) if isinstance(entry, str) else entry
        if isinstance(op, SplittingOp):
            bodies[op.name] = op.body
    return bodies
