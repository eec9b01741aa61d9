"""Trace a model once: declared dims dynamic, the graph whole, what the trace relied on written down."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torch_piecewise.config import Config
from torch_piecewise.dynamic_dims import Dims
from torch_piecewise.errors import ConfigError, DynamicDimError, GraphBreakError
from torch_piecewise.relations import Relation
from torch_piecewise.torch_private import dynamo, shapes
from torch_piecewise.torch_private.dynamo import RawCapture
from torch_piecewise.torch_private.shapes import dim_text

_SUBSTITUTE = 7
"""Size that stands for a dynamic dim of size 0 or 1 in a trace: sizes with meanings of their own."""


_DYNAMO_SETTINGS = {
    # What is dynamic is declared; Dynamo's memory of earlier traces in this process must not add to it.
    "automatic_dynamic_shapes": False,
    "automatic_dynamic_local_pgo": False,
    "assume_static_by_default": True,
    "specialize_float": True,
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
    bound: inspect.BoundArguments,
    dims: Dims,
    config: Config,
) -> Captured:
    """Trace ``function`` for the call ``bound``; nothing is run and the arguments are not changed.

    A dynamic dim of size 0 or 1 is traced with another size first, because torch treats those two as
    constants in places; where the model's own code distinguishes them, the trace is made again with the
    true sizes, and holds for those.

    Raises:
        GraphBreakError: Dynamo cannot trace it whole.
        DynamicDimError: a declared dim does not exist, or the model fixes it.
    """
    _check_dims(bound, dims)
    true_sizes = _sizes(bound, dims)
    first = _trace(function, bound, dims, config, substitute=True)
    values = _values(first.symbols, true_sizes)
    if all(relation.holds(values) for relation in first.relations):
        return first
    return _trace(function, bound, dims, config, substitute=False)


def _check_dims(bound: inspect.BoundArguments, dims: Dims) -> None:
    declared: dict[str, tuple[str, int]] = {}
    for name, by_dim in dims.items():
        value = bound.arguments.get(name)
        if not isinstance(value, torch.Tensor):
            continue
        for dim, symbol in by_dim.items():
            if not -value.dim() <= dim < value.dim():
                raise DynamicDimError(
                    f"Dynamic dim {dim} of argument {name!r} is out of range",
                    expected=f"a dim of a {value.dim()}-d tensor",
                    got=f"dim {dim}, shape {tuple(value.shape)}",
                    hint="correct dynamic_arg_dims",
                )
            size = value.size(dim)
            other, known = declared.setdefault(symbol, (f"{name}.{dim}", size)) if symbol else ("", size)
            if known != size:
                raise DynamicDimError(
                    f"Dims that share the symbol {symbol!r} differ in size",
                    expected=f"{name}.{dim} == {other} == {known}",
                    got=str(size),
                )


def _sizes(bound: inspect.BoundArguments, dims: Dims) -> dict[str, int]:
    sizes = {}
    for name, by_dim in dims.items():
        value = bound.arguments.get(name)
        if isinstance(value, torch.Tensor):
            sizes.update({f"L['{name}'].size()[{dim % value.dim()}]": value.size(dim) for dim in by_dim})
    return sizes


def _values(symbols: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, int]:
    return {symbol: sizes[source] for symbol, source in symbols.items() if source in sizes}


def _trace(
    function: Callable[..., Any],
    bound: inspect.BoundArguments,
    dims: Dims,
    config: Config,
    *,
    substitute: bool,
) -> Captured:
    prepared = _prepared(bound, dims, substitute, config)
    oblivious = config.dynamic_shapes == "backed_size_oblivious"
    try:
        raw = dynamo.capture_fullgraph(
            function,
            prepared.args,
            prepared.kwargs,
            shape_settings={"backed_size_oblivious": oblivious},
            dynamo_settings=_DYNAMO_SETTINGS,
        )
    except dynamo.GraphBreak as error:
        raise graph_break_error(error) from error
    except dynamo.ShapeError as error:
        raise DynamicDimError(
            "A declared dynamic dim cannot stay dynamic",
            got=str(error).strip().splitlines()[0],
            hint="remove it from dynamic_arg_dims, or change the code that fixes its size",
        ) from error
    return _named(raw, bound, dims, config)


def _prepared(
    bound: inspect.BoundArguments, dims: Dims, substitute: bool, config: Config
) -> inspect.BoundArguments:
    """The call with stand-ins for its dynamic tensors: the same memory or size, marked for the trace."""
    copies: dict[int, torch.Tensor] = {}
    arguments = OrderedDict(bound.arguments)
    for name, by_dim in dims.items():
        value = arguments.get(name)
        if not isinstance(value, torch.Tensor):
            continue
        if id(value) not in copies:
            copies[id(value)] = _stand_in(value, by_dim, substitute)
        arguments[name] = copies[id(value)]
        unbacked = config.unbacked_dims().get(name, ())
        for dim in by_dim:
            position = dim % value.dim()
            if config.dynamic_shapes == "backed" and not substitute and value.size(dim) in (0, 1):
                continue  # such a size is a constant to torch in this mode: it gets a trace of its own
            if config.dynamic_shapes == "unbacked" or position in unbacked:
                dynamo.mark_unbacked(copies[id(value)], position)
            else:
                dynamo.mark_dynamic(copies[id(value)], position)
    return inspect.BoundArguments(bound.signature, arguments)


def _stand_in(value: torch.Tensor, by_dim: Mapping[int, Any], substitute: bool) -> torch.Tensor:
    sizes = list(value.shape)
    for dim in by_dim:
        if substitute and sizes[dim] in (0, 1):
            sizes[dim] = _SUBSTITUTE
    if sizes == list(value.shape):
        stand_in = value.detach()
    else:
        stand_in = torch.empty(sizes, dtype=value.dtype, device=value.device)
    return stand_in.requires_grad_(value.requires_grad)


def _named(raw: RawCapture, bound: inspect.BoundArguments, dims: Dims, config: Config) -> Captured:
    declared = _declared_sizes(raw, dims)
    by_name: dict[str, str] = {}
    for (name, dim), size in declared.items():
        symbol = dims[name][dim] or f"{name}.{dim}"
        other = by_name.setdefault(symbol, f"{name}.{dim}")
        if other != f"{name}.{dim}":
            first = declared[other.rsplit(".", 1)[0], int(other.rsplit(".", 1)[1])]
            shapes.assume_equal(raw.shape_env, first, size)
    _refuse_fixed_dims(raw, declared, (0, 1) if config.dynamic_shapes == "backed" else ())
    symbols = shapes.symbol_sources(raw.shape_env, raw.sources, raw.fakes)
    relations = tuple(Relation(*pair) for pair in shapes.shape_relations(raw.shape_env))
    used = {name for relation in relations for name in relation.symbols}
    dispatch = _dispatch_symbol(declared, config)
    keep = {s: source for s, source in symbols.items() if s == dispatch or s in used}
    return Captured(raw, dispatch, keep, relations)


def _declared_sizes(raw: RawCapture, dims: Dims) -> dict[tuple[str, int], Any]:
    found = {}
    by_source = dict(zip(raw.sources, raw.fakes, strict=True))
    for name, by_dim in dims.items():
        fake = by_source.get(f"L['{name}']")
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
        where = shapes.where_fixed(raw.shape_env, number)
        raise DynamicDimError(
            f"Dim {dim} of argument {name!r} was declared dynamic, but the model fixes its size at {number}",
            expected="code that works for any size of it",
            got=f"the trace found that it must be {number}" + (f", at {where}" if where else ""),
            hint=f"remove dim {dim} of {name!r} from dynamic_arg_dims, or change that line",
        )


def _dispatch_symbol(declared: Mapping[tuple[str, int], Any], config: Config) -> str | None:
    if config.dispatch_on is None:
        first = next(iter(declared.values()), None)
        return str(dim_text(first)) if isinstance(first, torch.SymInt) else None
    argument, _, dim_text_ = config.dispatch_on.rpartition(".")
    dim = int(dim_text_)
    for (name, declared_dim), size in declared.items():
        if name == argument and declared_dim == dim:
            return str(dim_text(size))
    raise ConfigError(
        "dispatch_on names a dim that is not dynamic in this call",
        expected=f"one of {', '.join(f'{name}.{dim}' for name, dim in declared) or 'no dim'}",
        got=f"{argument}.{dim}",
        hint="add it to dynamic_arg_dims",
    )


def graph_break_error(error: BaseException) -> GraphBreakError:
    """Dynamo's refusal as ours: file, line, reason, and what to change."""
    reason, hints, where = dynamo.graph_break_details(error)
    return GraphBreakError(
        f"The model breaks the graph{f' at {where}' if where else ''}",
        expected="code that traces as one graph",
        got=reason,
        hint=hints or "move that code out of the compiled model, or make it a tp.splitting_op",
    )
