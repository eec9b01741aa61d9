"""Cheap checks of a call's own inputs, made from what the trace read.

Dynamo lists everything it looked at. What hangs on the call's arguments becomes a Python expression here;
what hangs on the model (its attributes, hooks, globals) is not checked on each call, except its training
flag and, elsewhere, its parameters, buffers and submodules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torch_piecewise.call_checks import autocast_state
from torch_piecewise.convention import Check, Convention
from torch_piecewise.piece import InputSpec, TensorSpec
from torch_piecewise.torch_private.dynamo import RawCapture

_VALUES = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, complex)
_BY_VALUE = frozenset(("CONSTANT_MATCH", "EQUALS_MATCH", "NONE_MATCH", "BOOL_MATCH", "BOOL_FALSE"))
_BY_LENGTH = frozenset(("SEQUENCE_LENGTH", "LIST_LENGTH", "TUPLE_LENGTH", "DICT_LENGTH", "RANGE_MATCH"))
_BY_KEYS = frozenset(("DICT_KEYS", "DICT_KEYS_MATCH", "DICT_CONST_KEYS", "DICT_CONTAINS"))
_BY_IDENTITY = frozenset(("ID_MATCH", "CLASS_MATCH", "FUNCTION_MATCH", "CLOSURE_MATCH", "MODULE_MATCH"))
_BY_TYPE = frozenset(("TYPE_MATCH", "NN_MODULE", "DATA_PTR_MATCH", "WEAKREF_ALIVE"))


def convention_of(
    raw: RawCapture, owner_name: str | None, frame: Mapping[str, Any], specs: Sequence[InputSpec | None]
) -> Convention:
    """The calling convention of one trace.

    Args:
        owner_name: name of the frame's local that is the model itself, whose attributes are not checked.
        frame: the frame's locals at the trace, closed-over ones included.
        specs: description of each graph input, in order.
    """
    return Convention(
        owner_name=owner_name,
        sources=raw.sources,
        specs=tuple(specs),
        checks=_checks_of_trace(raw, owner_name, frame, specs),
        values=_check_values(raw, frame),
        tail=raw.tail,
        tail_imports=raw.tail_imports,
        tail_builtins=raw.tail_builtins,
    )


def _checks_of_trace(
    raw: RawCapture, owner_name: str | None, frame: Mapping[str, Any], specs: Sequence[Any]
) -> tuple[Check, ...]:
    by_source = dict(zip(raw.sources, specs, strict=True))
    checks: list[Check] = list(_mode_checks(owner_name, frame))
    seen: set[str] = set()
    for guard in raw.guards:
        if not guard.path.startswith("L['") or guard.path.startswith(f"L['{owner_name}']"):
            continue
        made = _check(guard.path, guard.kind, frame, raw.traced.__globals__, by_source)
        if made is not None and made.expression not in seen:
            seen.add(made.expression)
            checks.append(made)
    return tuple(checks)


def _mode_checks(owner_name: str | None, frame: Mapping[str, Any]) -> list[Check]:
    grad = torch.is_grad_enabled()
    checks = [
        Check(
            f"§grad_enabled() is {grad}",
            f"grad mode was {'on' if grad else 'off'} in the trace",
            "§grad_enabled()",
        ),
        Check("§autocast() == §traced_autocast", "autocast differs from the trace", "§autocast()"),
    ]
    owner = frame.get(owner_name) if owner_name is not None else None
    if isinstance(owner, torch.nn.Module):
        mode = owner.training
        checks.append(
            Check(f"§owner.training is {mode}", f"training was {mode} in the trace", "§owner.training")
        )
    return checks


def _check_values(raw: RawCapture, frame: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {"§traced_autocast": autocast_state()}
    for guard in raw.guards:
        if guard.path.startswith("L['"):
            value = _value(guard.path, frame, raw.traced.__globals__)
            values[_label("type", guard.path)] = type(value)
            if isinstance(value, torch.Tensor):
                values[_dtype_label(value.dtype)] = value.dtype
                values[_device_label(value.device)] = value.device
            elif guard.kind in _BY_IDENTITY or isinstance(value, _VALUES):
                values[_label("value", guard.path)] = value
    return values


def _value(path: str, frame: Mapping[str, Any], scope: Mapping[str, Any]) -> Any:
    try:
        return eval(path, {"L": frame, "G": scope})
    except Exception:  # noqa: BLE001 - a path of Dynamo's own (iterators, closures) that is no plain expression
        return None


def _label(prefix: str, path: str) -> str:
    return f"§{prefix}_{re.sub(r'[^0-9A-Za-z]+', '_', path)}"


def _check(
    path: str, kind: str, frame: Mapping[str, Any], scope: Mapping[str, Any], specs: Mapping[str, Any]
) -> Check | None:
    local = re.sub(r"L\['(\w+)'\]", r"\1", path)
    value = _value(path, frame, scope)
    spec = specs.get(path)
    if kind == "TENSOR_MATCH" and isinstance(value, torch.Tensor):
        return _tensor_check(local, value, spec if isinstance(spec, TensorSpec) else None)
    if kind in _BY_VALUE and isinstance(value, _VALUES):
        return _value_check(local, path, value)
    if kind in _BY_LENGTH:
        return Check(
            f"type({local}) is {_label('type', path)} and len({local}) == {len(value)}",
            f"{local} had length {len(value)}",
            f"len({local}) if hasattr({local}, '__len__') else type({local}).__name__",
        )
    if kind in _BY_KEYS and isinstance(value, Mapping):
        return Check(
            f"type({local}) is {_label('type', path)} and list({local}) == {list(value)!r}",
            f"{local} had keys {list(value)!r}",
            f"list({local}) if hasattr({local}, 'keys') else type({local}).__name__",
        )
    if kind in _BY_IDENTITY:
        return Check(f"{local} is {_label('value', path)}", f"{local} was another object", f"repr({local})")
    if kind in _BY_TYPE:
        name = type(value).__name__
        return Check(
            f"type({local}) is {_label('type', path)}", f"{local} was a {name}", f"type({local}).__name__"
        )
    return None


def _value_check(local: str, path: str, value: Any) -> Check:
    if value is None or isinstance(value, bool):
        return Check(f"{local} is {value}", f"{local} was {value}", f"repr({local})")
    return Check(
        f"type({local}) is {_label('type', path)} and {local} == {_label('value', path)}",
        f"{local} was {value!r}",
        f"repr({local})",
    )


def _tensor_check(local: str, tensor: torch.Tensor, spec: TensorSpec | None) -> Check:
    parts = [
        f"isinstance({local}, §Tensor)",
        f"{local}.dtype is {_dtype_label(tensor.dtype)}",
        f"{local}.device == {_device_label(tensor.device)}",
        f"{local}.dim() == {tensor.dim()}",
    ]
    if torch.is_grad_enabled():
        parts.append(f"{local}.requires_grad is {tensor.requires_grad}")
    described = f"{local} was {tensor.dtype}, {tensor.dim()}-d"
    if spec is not None:
        fixed = [(dim, size) for dim, size in enumerate(spec.size) if isinstance(size, int)]
        parts += [f"{local}.size({dim}) == {size}" for dim, size in fixed]
        parts.append(_layout_check(local, tensor, spec))
        described += (
            f", shape ({', '.join(map(str, spec.size))}), strides ({', '.join(map(str, spec.stride))})"
        )
    got = f"§show({local})"
    return Check(
        " and ".join(parts), described + f", requires_grad={tensor.requires_grad}, {tensor.device}", got
    )


def _device_label(device: torch.device) -> str:
    return _label("device", str(device))


def _dtype_label(dtype: torch.dtype) -> str:
    return _label("dtype", str(dtype))


def _layout_check(local: str, tensor: torch.Tensor, spec: TensorSpec) -> str:
    if tensor.is_contiguous():
        return f"{local}.is_contiguous()"
    fixed = [(dim, stride) for dim, stride in enumerate(spec.stride) if isinstance(stride, int)]
    return " and ".join(f"{local}.stride({dim}) == {stride}" for dim, stride in fixed) or "True"
