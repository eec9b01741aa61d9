"""Dynamo's own guards of one trace, asked directly instead of through a frame's cache entry.

``GraphCaptureOutput.build_guards`` (2.11, 2.13) is how torch's own ``aot_compile`` gets them. They hold
object identities of this process: torch refuses to write those down (``ID_MATCH``, ``NN_MODULE``,
``FUNCTION_MATCH``: ``CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES``), so they are made anew in
each process.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch


class FullGuards:
    """Everything Dynamo would check before it ran the compiled frame.

    Args:
        manager: torch's ``GuardManagerWrapper``.
        alive: objects whose identity it compares; while they live no other object has their ``id``.
    """

    def __init__(self, manager: Any, alive: tuple[Any, ...]) -> None:
        self._manager = manager
        self._alive = alive

    def hold(self, frame: Mapping[str, Any]) -> bool:
        """Whether a call with these locals, closed-over variables included, is like the traced one."""
        return bool(self._manager.check(frame))

    def reason(self, frame: Mapping[str, Any]) -> str:
        """The first guard that a call violates, as Dynamo words it; empty where all hold."""
        debug = self._manager.check_verbose(frame)
        if debug.result:
            return ""
        parts = debug.verbose_code_parts or ["a guard that Dynamo does not name"]
        return " ".join(str(parts[0]).split())


# Which dims of a tensor ``torch.compile`` was told of; 2.11 guards the first alone.
_MARKS = (
    "_dynamo_dynamic_indices",
    "_dynamo_weak_dynamic_indices",
    "_dynamo_unbacked_indices",
    "_dynamo_strict_unbacked_indices",
    "_dynamo_static_indices",
)


def full_guards(captured: Any, code: types.CodeType, stand_ins: Iterable[torch.Tensor]) -> FullGuards:
    """The guards of a ``GraphCaptureOutput``, made under the settings of its trace.

    Args:
        stand_ins: tensors of the trace that a call has others for. What those are marked with, for another
            compile, says nothing here: a guard passes marks that the traced tensor has too, so it gets all.

    Raises:
        ShapeError: a dim marked as dynamic is fixed by a guard.
    """
    for tensor in stand_ins:
        for name in _MARKS:
            setattr(tensor, name, set(range(tensor.dim())))
    manager = captured.build_guards(code).guard_manager
    referents = (_referent(guard) for guard in captured.output_graph.guards)  # known once they are built
    alive = tuple(one for one in referents if one is not None and not isinstance(one, torch.Tensor))
    return FullGuards(manager, alive)


def _referent(guard: Any) -> Any:
    reference = guard.obj_weakref
    return reference() if isinstance(reference, weakref.ReferenceType) else None
