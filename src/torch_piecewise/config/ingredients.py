"""Settings as text for cache keys: equal settings give equal text, on every machine."""

from __future__ import annotations

import enum
import hashlib
import inspect
import json
import os
import types
from collections.abc import Callable, Mapping
from functools import partial

from torch_piecewise.errors import FingerprintError


def as_text(value: object, name_of: Callable[[object], str]) -> str:
    """``value`` as JSON with sorted keys; objects are named by ``name_of``.

    Raises:
        FingerprintError: ``name_of`` refused an object, or a mapping's keys are neither texts nor numbers.
    """
    try:
        return json.dumps(value, default=partial(_plain, name_of=name_of), sort_keys=True)
    except FingerprintError:
        raise
    except TypeError as error:
        raise FingerprintError(
            "a setting cannot be written down as text",
            expected="values made of lists, mappings with text keys, numbers, texts and named objects",
            got=repr(value),
        ) from error


def _plain(value: object, name_of: Callable[[object], str]) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    return {"object": name_of(value)}


def stable_name(value: object) -> str:
    """A name for an object that stays the same as long as the object does the same.

    A class is named by where it stands; a function by that and its source text; anything with a
    ``uuid()`` method by its class and what ``uuid()`` returns.

    Raises:
        FingerprintError: a lambda, a local function, a bound method, or another object without a
            ``uuid()``: nothing about it tells two of them apart.
    """
    if isinstance(value, type) or inspect.isbuiltin(value):
        return _place(value)
    if callable(getattr(value, "uuid", None)):
        return f"{_place(type(value))} {value.uuid()}"  # type: ignore[attr-defined]
    if isinstance(value, types.FunctionType) and "<" not in value.__qualname__:
        return f"{_place(value)} {_source_digest(value)}"
    raise FingerprintError(
        f"{value!r} has no stable identity, so nothing compiled with it can be kept",
        expected="a class, a function of a module, or an object with a uuid() method",
        got=type(value).__name__,
        hint="move the function to the top of a module, or give the object a uuid() method",
    )


def _place(value: object) -> str:
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', value)}"


def _source_digest(function: types.FunctionType) -> str:
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    except OSError:
        raise FingerprintError(
            f"the source of {_place(function)} cannot be read, so its identity cannot be told",
            expected="a function whose source file is there",
            hint="define it in a file, or give an object with a uuid() method",
        ) from None
