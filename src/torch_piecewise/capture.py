"""Trace a model once: declared dims dynamic, the graph whole, what the trace relied on written down."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from torch_piecewise.call_form import CallForm
from torch_piecewise.config import Config
from torch_piecewise.dynamic_dims import Dims, from_front, refuse_containers
from torch_piecewise.errors import CaptureError, ConfigError, DynamicDimError, GraphBreakError
from torch_piecewise.guard_policy import evaluation_error
from torch_piecewise.relations import Relation, readable
from torch_piecewise.size_limits import index_limits, sliced_dims, squeezed_dims
from torch_piecewise.stand_ins import Small, attempts, stand_ins
from torch_piecewise.torch_private import dynamo, shapes
from torch_piecewise.torch_private.dynamo import RawCapture
from torch_piecewise.torch_private.shapes import dim_text

_DYNAMO_SETTINGS = {
    # What is dynamic is declared; Dynamo's memory of earlier traces in this process must not add to it.
    "automatic_dynamic_shapes": False,
    "automatic_dynamic_local_pgo": False,
    "assume_static_by_default": True,
    "specialize_float": True,
    # A function given as an argument is told apart by its defaults too; 2.11 leaves them out, 2.13 does not.
    "skip_guards_on_constant_func_defaults": False,
}


@dataclass(frozen=True)
class Captured:
    """One trace, with its symbols named.

    Attributes:
        raw: what Dynamo gave.
        dispatch: the symbol that ranges and sizes are about; None when no dim is dynamic.
        symbols: symbol -> expression over ``L`` that reads its value from a call.
        relations: conditions on sizes that the trace relied on.
    """

    raw: RawCapture
    dispatch: str | None
    symbols: Mapping[str, str]
    relations: tuple[Relation, ...]


def capture(
    function: Callable[..., Any],
    call: CallForm,
    dims: Dims,
    config: Config,
) -> Captured:
    """Trace ``function`` for ``call``; nothing is run and the arguments are not changed.

    A dynamic dim of size 0 or 1 is traced with another size first, because torch treats those two as
    constants in places; where the model's own code distinguishes them, the trace is made again with the
    true sizes, and holds for those. Where even that fails, because the code takes another way at that
    size which torch cannot trace for a size that may change, the dim is fixed in this trace.

    Where nothing need be assumed of sizes but torch asks about one that it made up itself, the trace is made
    as under ``dynamic_shapes="backed"``: torch 2.11 asks so where ``cache[:n]`` of a dynamic ``n`` is set.

    Raises:
        GraphBreakError: Dynamo cannot trace it whole.
        DynamicDimError: a declared dim does not exist, or the model fixes it.
        CaptureError: the model's own operations refuse this call.
    """
    refuse_containers(config.dynamic_dims(), call.bound.arguments)
    dims = from_front(dims, call.values)
    _check_symbols(call, dims)
    try:
        return _captured(function, call, dims, config)
    except GraphBreakError as error:
        if config.dynamic_shapes != "backed_size_oblivious" or not _asks_unknown_size(error, config):
            raise
        try:
            return _captured(function, call, dims, replace(config, dynamic_shapes="backed"))
        except CaptureError:
            raise error from None


def _asks_unknown_size(error: GraphBreakError, config: Config) -> bool:
    return not _nothing_assumed(config) and _DATA_DEPENDENT in (error.got or "")


def _captured(function: Callable[..., Any], call: CallForm, dims: Dims, config: Config) -> Captured:
    """A trace that serves the call, by the first way of ``attempts`` that gives one."""
    true_sizes = _sizes(call, dims)
    *others, last = attempts(call, true_sizes, config)
    for small in others:
        try:
            captured = _trace(function, call, dims, config, small)
        except CaptureError:
            continue
        if _serves(captured, function, call, true_sizes, config):
            return captured
    return _trace(function, call, dims, config, last)


def _serves(
    captured: Captured, function: Any, call: CallForm, sizes: Mapping[str, int], config: Config
) -> bool:
    """Whether a trace made with other sizes holds for the call as it is."""
    values = {symbol: sizes[source] for symbol, source in captured.symbols.items() if source in sizes}
    violated = [relation for relation in captured.relations if not relation.holds(values)]
    asked = next((one for one in violated if not one.assumed and not one.promised_by), None)
    if asked is not None and config.evaluate_guards:
        names = captured.symbols
        raise evaluation_error(
            asked.shown(names),
            ", ".join(f"{readable(symbol, names)}={value}" for symbol, value in values.items()),
        )
    guards = captured.raw.full_guards
    return not violated and (guards is None or guards.hold(_frame(captured.raw, function, call)))


def _frame(raw: RawCapture, function: Any, call: CallForm) -> dict[str, Any]:
    """The locals of the traced frame for this call, closed-over variables included."""
    bound = inspect.BoundArguments(call.bound.signature, call.bound.arguments.copy())
    bound.apply_defaults()
    owner = getattr(function, "__self__", None)
    own = {} if owner is None else {raw.argument_names[0]: owner}
    cells = zip(raw.traced.__code__.co_freevars, raw.traced.__closure__ or (), strict=True)
    return {**own, **bound.arguments, **{name: cell.cell_contents for name, cell in cells}}


def _check_symbols(call: CallForm, dims: Dims) -> None:
    declared: dict[str, tuple[str, int]] = {}
    for name, by_dim in dims.items():
        for dim, symbol in by_dim.items():
            size = call.values[name].size(dim)
            other, known = declared.setdefault(symbol, (f"{name}.{dim}", size)) if symbol else ("", size)
            if known != size:
                raise DynamicDimError(
                    f"Dims that share the symbol {symbol!r} differ in size",
                    expected=f"{name}.{dim} == {other} == {known}",
                    got=str(size),
                    hint="call it with equal sizes, or give each dim a symbol of its own in dynamic_arg_dims",
                )


def _sizes(call: CallForm, dims: Dims) -> dict[str, int]:
    return {
        f"{call.sources[name]}.size()[{dim}]": call.values[name].size(dim)
        for name, by_dim in dims.items()
        for dim in by_dim
    }


def _trace(
    function: Callable[..., Any],
    call: CallForm,
    dims: Dims,
    config: Config,
    small: Small,
) -> Captured:
    copies = stand_ins(call, dims, small, config)
    args, kwargs = call.replaced(copies)
    oblivious = config.dynamic_shapes == "backed_size_oblivious"
    try:
        raw = dynamo.capture_fullgraph(
            function,
            args,
            kwargs,
            shape_settings={"backed_size_oblivious": oblivious},
            dynamo_settings=_DYNAMO_SETTINGS,
            with_full_guards=config.guards == "full",
            stand_ins=copies.values(),
        )
    except dynamo.GraphBreak as error:
        raise graph_break_error(error, unbacked=_nothing_assumed(config)) from error
    except dynamo.ShapeError as error:
        raise DynamicDimError(
            "A declared dynamic dim cannot stay dynamic",
            got=str(error).strip().splitlines()[0],
            hint="remove it from dynamic_arg_dims, or change the code that fixes its size",
        ) from error
    except dynamo.FakeCallError as error:
        raise _refused_call_error(error) from error
    return _named(raw, call, dims, config, (0, 1) if small is Small.FIXED else ())


def _named(raw: RawCapture, call: CallForm, dims: Dims, config: Config, allowed: tuple[int, ...]) -> Captured:
    declared = _declared_sizes(raw, call, dims)
    by_name: dict[str, str] = {}
    for (name, dim), size in declared.items():
        symbol = dims[name][dim] or f"{name}.{dim}"
        other = by_name.setdefault(symbol, f"{name}.{dim}")
        if other != f"{name}.{dim}":
            first = declared[other.rsplit(".", 1)[0], int(other.rsplit(".", 1)[1])]
            shapes.assume_equal(raw.shape_env, first, size)
    _refuse_fixed_dims(raw, declared, allowed)
    symbols = shapes.symbol_sources(raw.shape_env, raw.sources, raw.fakes)
    relations = _relations(raw, config)
    used = {name for relation in relations for name in relation.symbols}
    dispatch = _dispatch_symbol(declared, call, config)
    keep = {s: source for s, source in symbols.items() if s == dispatch or s in used}
    return Captured(raw, dispatch, keep, relations)


def _relations(raw: RawCapture, config: Config) -> tuple[Relation, ...]:
    backed = config.dynamic_shapes == "backed"
    traced = [
        Relation(text, where, assumed=backed and _is_assumed(text, where))
        for text, where in shapes.shape_relations(raw.shape_env, raw.files)
    ]
    limits = index_limits(raw.graph) if config.assume_32_bit_indexing else ()
    return tuple(
        {
            one.text: one for one in (*traced, *squeezed_dims(raw.graph), *sliced_dims(raw.graph), *limits)
        }.values()
    )


def _is_assumed(text: str, where: str) -> bool:
    """Whether it is what torch takes for granted of every backed size: that it is neither 0 nor 1."""
    return not where and text.endswith(" >= 2")


def _declared_sizes(raw: RawCapture, call: CallForm, dims: Dims) -> dict[tuple[str, int], Any]:
    found = {}
    by_source = dict(zip(raw.sources, raw.fakes, strict=True))
    for name, by_dim in dims.items():
        fake = by_source.get(call.sources.get(name, ""))
        if isinstance(fake, torch.Tensor):
            found.update({(name, dim): fake.shape[dim] for dim in by_dim})
    return found


def _refuse_fixed_dims(
    raw: RawCapture, declared: Mapping[tuple[str, int], Any], allowed: tuple[int, ...]
) -> None:
    for (name, dim), size in declared.items():
        number = dim_text(size)
        if not isinstance(number, int) or number in allowed:
            continue
        where = shapes.where_fixed(raw.shape_env, number, raw.files)
        raise DynamicDimError(
            f"Dim {dim} of argument {name!r} was declared dynamic, but the model fixes its size at {number}",
            expected="code that works for any size of it",
            got=f"the trace found that it must be {number}" + (f", at {where}" if where else ""),
            hint=f"declare the other arguments whose size changes with it too, change that line, or remove "
            f"dim {dim} of {name!r} from dynamic_arg_dims",
        )


def _dispatch_symbol(declared: Mapping[tuple[str, int], Any], call: CallForm, config: Config) -> str | None:
    wanted = config.dispatch_dim() if config.dispatch_on is not None else None
    if wanted is None:
        first = next(iter(declared.values()), None)
        return str(dim_text(first)) if isinstance(first, torch.SymInt) else None
    argument, dim = wanted
    value = call.values.get(argument)
    if value is None and argument in call.bound.signature.parameters:
        return None  # it may be left out; such a call is served by code for all sizes
    rank = value.dim() if isinstance(value, torch.Tensor) else 0
    placed = dim + rank if dim < 0 else dim
    if (argument, placed) in declared:
        return str(dim_text(declared[argument, placed]))
    raise ConfigError(
        "dispatch_on names a dim that is not dynamic in this call",
        expected=f"one of {', '.join(f'{name}.{dim}' for name, dim in declared) or 'no dim'}",
        got=f"{argument}.{dim}",
        hint="add it to dynamic_arg_dims",
    )


def _nothing_assumed(config: Config) -> bool:
    return config.dynamic_shapes == "unbacked" or bool(config.unbacked_dims())


_DATA_DEPENDENT = "Could not guard on data-dependent expression"

_CONTEXT_VARIABLE = "ContextVar"
"""What a function marked with ``runs_eagerly`` asks first."""

_MOVE_IT = "move that code out of the compiled model, or make it a tp.splitting_op"
_EAGER_MARK = (
    "a trace goes through functions marked with runs_eagerly: make it a tp.splitting_op, which runs between "
    "the compiled pieces; with runs_eagerly beneath that, it stays out of graphs of whole calls too"
)


def graph_break_error(error: BaseException, *, unbacked: bool = False) -> GraphBreakError:
    """Dynamo's refusal as ours: file, line, reason, and what to change.

    Args:
        unbacked: whether nothing is assumed of the dynamic sizes, so that the model may not ask about them.
    """
    reason, hints, where = dynamo.graph_break_details(error)
    if unbacked and _DATA_DEPENDENT in reason:
        asked = reason.partition("data-dependent expression ")[2].partition(" (")[0]
        return GraphBreakError(
            f"The model asks about a size of which nothing may be assumed{f', at {where}' if where else ''}",
            expected="code that does the same for every size, or torch._check for what is always true of it",
            got=f"the question {asked}",
            hint="dynamic_shapes='backed_size_oblivious', without mark_unbacked_dims, keeps a guard instead",
        )
    return GraphBreakError(
        f"The model breaks the graph{f' at {where}' if where else ''}",
        expected="code that traces as one graph",
        got=reason,
        hint=_EAGER_MARK if _CONTEXT_VARIABLE in reason else hints or _MOVE_IT,
    )


def _refused_call_error(error: BaseException) -> CaptureError:
    reason, _hints, where = dynamo.graph_break_details(error)
    return CaptureError(
        f"An operation refuses fake inputs in the trace{f', at {where}' if where else ''}",
        expected="an operation that takes fake tensors wherever it takes real ones",
        got=reason.rpartition("): got ")[2],
        hint="correct its fake kernel (torch.library.register_fake), or keep it out of the compiled model",
    )
