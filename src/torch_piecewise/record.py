"""A program as bytes: what another process needs to run it without tracing and without compiling.

Bytes are read with ``pickle``, so callers hand over only what the store has verified.
"""

from __future__ import annotations

import builtins
import io
import marshal
import pickle
import types
from dataclasses import dataclass
from typing import Any

from torch_piecewise.compilers.base import Ambient
from torch_piecewise.convention import Convention
from torch_piecewise.errors import FingerprintError
from torch_piecewise.program import PieceInfo, Sizes
from torch_piecewise.relations import Relation
from torch_piecewise.stitching import Stitched
from torch_piecewise.torch_private.ops import find_op, op_name, op_overload_name


@dataclass(frozen=True)
class ProgramRecord:
    """One program, its compiled pieces left out (they are entries of their own).

    Attributes:
        convention: how its calls go in and out.
        stitched: the straight line.
        infos: its pieces, in order.
        sizes, relations, cuts: as for :class:`~torch_piecewise.program.Program`.
        ambient: torch's settings it was compiled under.
    """

    convention: Convention
    stitched: Stitched
    infos: tuple[PieceInfo, ...]
    sizes: Sizes
    relations: tuple[Relation, ...]
    cuts: int
    ambient: Ambient


def to_bytes(value: Any) -> bytes:
    """Serialise a record or a piece.

    Raises:
        FingerprintError: it refers to something that another process cannot find (a local class, an open
            file); says what.
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(value)
    except Exception as error:
        raise FingerprintError(
            "This program cannot be kept",
            expected="functions, classes and constants that another process can import or rebuild",
            got=f"{type(error).__name__}: {error}",
            hint="move what it refers to to the top of a module; the program runs, unkept",
        ) from error
    return buffer.getvalue()


def from_bytes(data: bytes) -> Any:
    """The value that :func:`to_bytes` serialised. ``data`` has to be verified."""
    return pickle.loads(data)


# Types of functions, methods, code and the like, which say of themselves that they are builtins.
_NAMED_IN_TYPES = {
    value: name
    for name, value in vars(types).items()
    if isinstance(value, type) and value.__module__ == "builtins" and not hasattr(builtins, value.__name__)
}


def _type_named(name: str) -> type:
    named: type = getattr(types, name)
    return named


class _Pickler(pickle.Pickler):
    """Adds what pickle lacks: code objects, types that only ``types`` names, and ops by name."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, types.CodeType):
            return marshal.loads, (marshal.dumps(value),)
        if isinstance(value, type) and value in _NAMED_IN_TYPES:
            return _type_named, (_NAMED_IN_TYPES[value],)
        if (name := _op_reference(value)) is not None:
            return find_op, (name,)
        if isinstance(value, types.MappingProxyType):
            return dict, (dict(value),)
        return NotImplemented


def _op_reference(value: Any) -> str | None:
    overload = op_overload_name(value)
    if overload is not None:
        return overload
    try:
        return op_name(value)
    except TypeError:
        return None
