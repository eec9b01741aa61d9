"""The staircase, as steps one can read: a traced graph in, a program out.

This is the only place where the concrete parts (compiler, pool, fingerprint) are chosen.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch.fx import GraphModule

from torch_piecewise.background import Background
from torch_piecewise.compilers.base import Ambient
from torch_piecewise.completion import Announcement, watches
from torch_piecewise.config import Config
from torch_piecewise.cut_policy import CutPolicy
from torch_piecewise.describe import describe_pieces
from torch_piecewise.dispatch import reachable
from torch_piecewise.errors import CompileError, ConfigError
from torch_piecewise.events import Bus, Event, GraphSplit
from torch_piecewise.flat_call import dispatch_symbol, flat_entry, refuse_own_weights, tell_what_torch_decides
from torch_piecewise.inductor_partition import captures_partitions
from torch_piecewise.inspection import Inspection, tell
from torch_piecewise.lost_gradients import refuse_lost_gradients
from torch_piecewise.manager.pieces import identity
from torch_piecewise.managers import Managers, store_for
from torch_piecewise.piece import EagerPiece, Piece
from torch_piecewise.program import PieceInfo, Pieces, Program, Sizes
from torch_piecewise.relations import Relation
from torch_piecewise.replay_facts import ReplayFacts
from torch_piecewise.size_limits import index_limits
from torch_piecewise.splitting import SplitPlan, plan_split
from torch_piecewise.splitting_ops import body_lookup
from torch_piecewise.static_calls import StaticCalls
from torch_piecewise.stitching import stitch
from torch_piecewise.tags import current_tag
from torch_piecewise.torch_private.nodes import (
    ensure_example_values,
    flat_symbol_readers,
    placeholder_facts,
)
from torch_piecewise.torch_private.shapes import ShapeEnv, size_bounds
from torch_piecewise.trace_facts import TracedCall, replay_facts

logger = logging.getLogger("torch_piecewise")


class Workshop:
    """Makes programs under one configuration; what one compiled model owns.

    Args:
        config: the settings.
        bus: gets every event.
        managers: what makes pieces ready.
    """

    def __init__(self, config: Config, bus: Bus, managers: Managers) -> None:
        self.config = config
        self.bus = bus
        self._managers = managers
        uncut = config.mode == "trace_once" or config.use_inductor_graph_partition
        self._policy = CutPolicy.of(() if uncut else config.splitting_ops)
        self._partition = CutPolicy.of(config.splitting_ops) if captures_partitions(config) else None

    def build(
        self,
        graph: GraphModule,
        *,
        shape_env: ShapeEnv | None,
        relations: Sequence[Relation] = (),
        dispatch: str | None = None,
        symbols: Mapping[str, str] | None = None,
        arguments: AbstractSet[str] | None = None,
        inspection: Inspection | None = None,
        prepare: bool = True,
    ) -> Program:
        """Cut, fingerprint, compile and stitch one traced graph.

        Args:
            graph: as traced; normalised in place.
            shape_env: where its symbols live; None where all sizes are numbers.
            relations: conditions on sizes that a call has to meet.
            dispatch: the symbol that ranges and sizes are about.
            symbols: symbol -> how a call's value of it is read; all that ``relations`` mention.
            arguments: names of the call's arguments; None for every input that is no parameter or buffer.
            inspection: is shown the graph before and after it is cut; None for nobody.
            prepare: False leaves every piece uncompiled.

        Raises:
            PieceCompileError: a piece failed to compile.
        """
        if inspection is not None:
            inspection.traced(graph)
        with self.bus.phase("split"):
            plan = plan_split(graph, self._policy)
        for warning in plan.warnings:
            logger.warning("%s", warning)
        with self.bus.phase("fingerprint"):
            known = [relation for relation in relations if not relation.promised_by]
            pieces = self._distinct(plan, shape_env, known, dispatch)
        self._report(plan, pieces)
        with self.bus.phase("stitch"):
            if torch.is_grad_enabled():
                refuse_lost_gradients(graph.graph, plan.module)
            cuts = [item.submod_name for item in plan.items if item.is_splitting_graph]
            stitched = stitch(plan.module, cuts)
        if inspection is not None:
            inspection.cut(plan, stitched.source)
        sizes = self._sizes(dispatch, symbols or {}, shape_env, known)
        program = Program(
            stitched=stitched,
            body_of=body_lookup(grad_enabled=torch.is_grad_enabled()),
            pieces=pieces,
            tiers=self._managers.of(Ambient.now()),
            sizes=sizes,
            relations=() if self.config.guards == "none" else relations,
            cuts=len(cuts),
            facts=self._facts(
                TracedCall(
                    graph,
                    plan,
                    dispatch,
                    {s: sizes.names[s] for s in sizes.symbols},
                    arguments,
                    self._partition,
                )
            ),
        )
        if prepare:
            program.prepare()
        return program

    def _facts(self, call: TracedCall) -> ReplayFacts | None:
        """What replaying calls has to know; None where nothing is captured."""
        if not self.config.cudagraph_mode:
            return None
        with self.bus.phase("stitch"):
            named = self.config.dynamic_dims()
            return replay_facts(call, Ambient.now().autocast, self.config.cudagraph_pad_values, named)

    def _distinct(
        self,
        plan: SplitPlan,
        shape_env: ShapeEnv | None,
        relations: Sequence[Relation],
        dispatch: str | None,
    ) -> Pieces:
        described = {p.name: p for p in describe_pieces(plan.items, shape_env, relations, dispatch)}
        for piece in described.values():
            if isinstance(piece, EagerPiece) and piece.reason != "it computes nothing":
                logger.warning("%s stays eager: %s", piece.name, piece.reason)
        return Pieces([_info(piece) for piece in described.values()], described.__getitem__)

    def _report(self, plan: SplitPlan, pieces: Pieces) -> None:
        cuts = sum(item.is_splitting_graph for item in plan.items)
        self.bus.emit(GraphSplit(pieces=len(plan.items) - cuts, cuts=cuts, distinct=pieces.distinct))

    def _sizes(
        self,
        dispatch: str | None,
        symbols: Mapping[str, str],
        shape_env: ShapeEnv | None,
        relations: Sequence[Relation],
    ) -> Sizes:
        if dispatch is None:
            return Sizes(None, (), symbols=tuple(symbols), names=symbols)
        others = tuple(name for name in symbols if name != dispatch)
        alone = [relation for relation in relations if relation.symbols == {dispatch}]
        ranges, exact = reachable(
            self.config.compile_ranges(),
            self.config.resolved_compile_sizes(),
            size_bounds(dispatch, shape_env),
            lambda size: all(relation.holds({dispatch: size}) for relation in alone),
        )
        return Sizes(
            dispatch=dispatch,
            ranges=ranges,
            exact=exact,
            symbols=(dispatch, *others),
            names=symbols,
        )


def _info(piece: Piece | EagerPiece) -> PieceInfo:
    if isinstance(piece, EagerPiece):
        return PieceInfo(piece.name, None)
    symbols = tuple(symbol.name for symbol in piece.symbols)
    return PieceInfo(piece.name, identity(piece), symbols, piece.dispatch is not None)


class PiecewiseCompileBackend:
    """A Dynamo backend: ``(GraphModule, example_inputs) -> callable``. One object serves one graph.

    Args:
        config: the settings; fields given as keywords override it.

    Raises:
        ConfigError: a field is unknown or malformed.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        observers: Sequence[Callable[[Event], None]] = (),
        **fields: Any,
    ) -> None:
        self.config = Config.given(config, fields, to="tp.PiecewiseCompileBackend")
        if self.config.mode == "stock_torch_compile":
            raise ConfigError(
                "A backend of torch.compile cannot hand its graph to torch.compile",
                expected="mode='piecewise', 'trace_once' or 'none'",
                got="mode='stock_torch_compile'",
                hint="call torch.compile without this backend, or tp.compile with this mode",
            )
        self.bus = Bus(*observers, tell, tag=current_tag())
        self.program: Program | None = None
        self._watches = watches()
        self._lock = threading.Lock()

    def __call__(self, graph: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., tuple[Any, ...]]:
        """Compile ``graph``.

        Args:
            graph: traced by Dynamo, or another FX graph module that takes every tensor as an input.
            example_inputs: its inputs; used where the graph's placeholders carry no example values.

        Returns:
            A function of the graph's inputs that returns the graph's outputs.

        Raises:
            CompileError: the object was called before: another graph needs a backend of its own. Or the
                graph holds weights.
        """
        if self.config.mode == "none":
            return graph.forward
        with Announcement(self._watches) as news, self._lock:
            if self.program is not None:
                raise CompileError(
                    "This backend object has compiled a graph already",
                    expected="one PiecewiseCompileBackend per graph",
                    got="a second graph",
                    hint="make another one, or use torch.compile(backend='piecewise'), which does so",
                )
            refuse_own_weights(graph)
            ensure_example_values(graph, example_inputs)
            sources, fakes, shape_env = placeholder_facts(graph)
            symbols = flat_symbol_readers(fakes)
            dispatch = dispatch_symbol(sources, fakes, self.config)
            keep = {name: text for name, text in symbols.items() if name == dispatch}
            limits = index_limits(graph) if self.config.assume_32_bit_indexing else ()
            later = Background("torch.compile")
            managers = Managers(self.config, self.bus, store_for(self.config), later)
            self.program = Workshop(self.config, self.bus, managers).build(
                graph,
                shape_env=shape_env,
                relations=[limit for limit in limits if limit.symbols <= keep.keys()],
                dispatch=dispatch,
                symbols=keep,
                inspection=Inspection(self.config, self.bus.tag, "graph"),
            )
            if self.config.cudagraph_mode:
                StaticCalls(self.config, self.bus).serve(self.program)
            news.due = True
        return flat_entry(self.program)


def piecewise_backend(
    graph: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., tuple[Any, ...]]:
    """What ``torch.compile(model, backend="piecewise", options={...})`` calls for each graph.

    Args:
        options: ``Config`` fields.
        mode: torch's own modes do not apply here; anything but None or ``"default"`` is refused.

    Raises:
        ConfigError: an option is no field, or a mode was given.
    """
    if mode not in (None, "default"):
        raise ConfigError(
            "backend='piecewise' takes no torch.compile mode",
            expected="options={...} with Config fields",
            got=f"mode={mode!r}",
            hint="for CUDA graphs use options={'cudagraph_mode': 'piecewise'}",
        )
    config = Config.from_env(**dict(options or {}))
    tell_what_torch_decides(config)
    return PiecewiseCompileBackend(config)(graph, example_inputs)
