"""Which dims of a call's arguments are dynamic: as configured, else read off the annotations."""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from torch_piecewise.config import Config
from torch_piecewise.errors import ConfigError, DynamicDimError

Dims = Mapping[str, Mapping[int, str | None]]
"""Argument name -> dim -> symbol name, None for a symbol of its own."""


def dynamic_dims(function: Callable[..., Any], config: Config) -> Dims:
    """Which dims of which arguments are dynamic: as configured, else dim 0 of each annotated tensor.

    Those of ``mark_unbacked_dims`` are dynamic too. Dims are as people wrote them: :func:`from_front` counts
    all from the first.

    Raises:
        ConfigError: an argument does not exist, or nothing is configured and nothing is annotated.
    """
    parameters = inspect.signature(function).parameters
    unbacked: Dims = {name: dict.fromkeys(dims) for name, dims in config.unbacked_dims().items()}
    _check_arguments("mark_unbacked_dims", unbacked, function)
    _check_arguments("cudagraph_pad_values", config.cudagraph_pad_values, function)
    if config.dynamic_arg_dims is not None:
        _check_arguments("dynamic_arg_dims", config.dynamic_dims(), function)
        return _with(config.dynamic_dims(), unbacked)
    annotated = {name: {0: None} for name in parameters if _is_tensor(function, name)}
    if not annotated:
        example = next((name for name in parameters if name != "self"), "x")
        raise ConfigError(
            f"No argument of {_label(function)} is annotated as a tensor, so its dynamic dims are unknown",
            expected=f"dynamic_arg_dims={{{example!r}: 0}}, or an annotation: {example}: torch.Tensor",
            got=f"({', '.join(map(str, parameters.values()))})",
            hint="name each argument whose size changes and its dims; dynamic_arg_dims={} if none does",
        )
    return _with(annotated, unbacked)


def from_front(dims: Dims, values: Mapping[str, Any]) -> Dims:
    """``dims`` with each dim counted from the first, ``-1`` of a 2-d argument as ``1``; others are left out.

    Args:
        values: a call's arguments by name.

    Raises:
        DynamicDimError: an argument lacks a dim, or one dim was given two symbols.
    """
    placed: dict[str, dict[int, str | None]] = {}
    for name, by_dim in dims.items():
        value = values.get(name)
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
            own = placed.setdefault(name, {})
            other = own.get(dim % value.dim())
            if symbol is not None and other not in (None, symbol):
                raise DynamicDimError(
                    f"Dim {dim % value.dim()} of argument {name!r} was given two symbols",
                    expected=f"one of {other!r} and {symbol!r}",
                    got=f"dims {', '.join(map(str, by_dim))} of a {value.dim()}-d tensor",
                    hint="name each dim once; a negative dim counts from the last",
                )
            own[dim % value.dim()] = symbol or other
    return placed


def refuse_containers(dims: Dims, given: Mapping[str, Any]) -> None:
    """Refuse declared dims of an argument that is a list or mapping of tensors.

    Args:
        dims: as configured.
        given: a call's arguments by parameter, ``*args`` and ``**kwargs`` as they are.

    Raises:
        DynamicDimError: one is; the sizes in it would be fixed, and each new one a new trace.
    """
    for name in dims:
        value = given.get(name)
        if isinstance(value, list | tuple | Mapping) and _holds_tensors(value):
            raise DynamicDimError(
                f"Argument {name!r} has dynamic dims and is no tensor",
                expected="a tensor; dims of tensors in lists, mappings, *args and **kwargs cannot be named",
                got=f"a {type(value).__name__} with tensors in it",
                hint="pass those whose sizes change as arguments of their own (one given by name through "
                "**kwargs can be named)",
            )


def _holds_tensors(value: Any) -> bool:
    items = value.values() if isinstance(value, Mapping) else value
    return any(
        isinstance(item, torch.Tensor) or (isinstance(item, list | tuple | Mapping) and _holds_tensors(item))
        for item in items
    )


def _with(dims: Dims, others: Dims) -> Dims:
    names = dict.fromkeys((*dims, *others))
    # Those of ``dims`` come first, and keep their symbols.
    return {name: {**dims.get(name, {}), **others.get(name, {}), **dims.get(name, {})} for name in names}


def _check_arguments(field: str, names: Iterable[str], function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters
    takes_any_name = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for name in names:
        if name not in parameters and not takes_any_name:
            near = difflib.get_close_matches(name, parameters, n=3)
            raise ConfigError(
                f"{field} names an argument that {_label(function)} lacks",
                expected=f"one of {', '.join(parameters)}",
                got=repr(name),
                hint=f"did you mean {' or '.join(near)}?" if near else None,
            )


def _label(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _is_tensor(function: Callable[..., Any], name: str) -> bool:
    plain = getattr(function, "__func__", function)
    try:
        annotation = typing.get_type_hints(plain).get(name)
    except Exception:  # noqa: BLE001 - a name that exists for type checkers only: judge by the text
        annotation = getattr(plain, "__annotations__", {}).get(name)
    if isinstance(annotation, str):
        return re.search(r"(^|[^\w.])(torch\.)?(\w*Tensor)\b", annotation) is not None and "[" not in (
            annotation.replace("Optional[", "")
        )
    options = typing.get_args(annotation) or (annotation,)
    return any(isinstance(option, type) and _is_tensor_class(option) for option in options)


def _is_tensor_class(cls: type) -> bool:
    # torch.LongTensor and its like stand in many annotations and are no subclasses of Tensor.
    is_legacy = cls.__module__ in ("torch", "torch.cuda") and cls.__name__.endswith("Tensor")
    return is_legacy or issubclass(cls, torch.Tensor)
