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
from torch_piecewise.errors import ConfigError

Dims = Mapping[str, Mapping[int, str | None]]
"""Argument name -> dim -> symbol name, None for a symbol of its own."""


def dynamic_dims(function: Callable[..., Any], config: Config) -> Dims:
    """Which dims of which arguments are dynamic: as configured, else dim 0 of each annotated tensor.

    Raises:
        ConfigError: an argument does not exist, or nothing is configured and nothing is annotated.
    """
    parameters = inspect.signature(function).parameters
    if config.dynamic_arg_dims is not None:
        declared = config.dynamic_dims()
        _refuse_unknown("dynamic_arg_dims", declared, function, parameters)
        return declared
    annotated = {name: {0: None} for name in parameters if _is_tensor(function, name)}
    if not annotated:
        example = next((name for name in parameters if name != "self"), "x")
        raise ConfigError(
            f"No argument of {_label(function)} is annotated as a tensor, so its dynamic dims are unknown",
            expected=f"dynamic_arg_dims={{{example!r}: 0}}, or an annotation: {example}: torch.Tensor",
            got=f"({', '.join(map(str, parameters.values()))})",
            hint="name each argument whose size changes and its dims; dynamic_arg_dims={} if none does",
        )
    return annotated


def check_pad_values(function: Callable[..., Any], config: Config) -> None:
    """Check that ``cudagraph_pad_values`` names arguments that ``function`` has.

    Raises:
        ConfigError: an argument does not exist.
    """
    parameters = inspect.signature(function).parameters
    if all(one.kind is not one.VAR_KEYWORD for one in parameters.values()):
        _refuse_unknown("cudagraph_pad_values", config.cudagraph_pad_values, function, parameters)


def _refuse_unknown(
    field: str, names: Iterable[str], function: Callable[..., Any], parameters: Mapping[str, Any]
) -> None:
    for name in names:
        if name not in parameters:
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
    return any(isinstance(option, type) and issubclass(option, torch.Tensor) for option in options)
