"""One traced specialisation of a model's call: checks the inputs, loads them, runs, rebuilds the result.

Its source is kept for people (``Entry.source``).
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch_piecewise.convention import Convention
from torch_piecewise.entry_source import MISS as MISS
from torch_piecewise.entry_source import CallShape as CallShape
from torch_piecewise.entry_source import EntryWriter
from torch_piecewise.errors import GuardError
from torch_piecewise.guard_policy import Mismatch, evaluation_error
from torch_piecewise.piece import InputSpec, TensorSpec
from torch_piecewise.program import Program, SizeKey
from torch_piecewise.relations import Relation
from torch_piecewise.stitching import Runner

if TYPE_CHECKING:
    from torch_piecewise.torch_private.full_guards import FullGuards


class Entry:
    """One traced specialisation of a call.

    Call it with the model's arguments; returns :data:`MISS` where the call is another one.

    Args:
        guards: what a call has to meet beside the convention's checks; None: nothing.

    Attributes:
        source: the generated function, for people.
        values: what its source refers to, by name.
        watched: positions of the graph inputs whose memory ``state`` looks at on each call.
        compared: those of them whose sizes and strides are on each call what they were in the trace.
        program: what it runs.
    """

    def __init__(
        self, convention: Convention, shape: CallShape, program: Program, guards: FullGuards | None = None
    ) -> None:
        writer = EntryWriter(convention, shape, program, guards)
        self.program = program
        self.convention = convention
        self.shape = shape
        self.state = writer.state
        self.watched = frozenset(at for at, load in enumerate(writer.loads) if load.startswith("§state["))
        self.compared = frozenset(
            at for at in self.watched if not convention.unchecked and _is_static(convention.specs[at])
        )
        self.source = writer.source()
        self.values = writer.scope
        scope = dict(self.values)
        exec(compile(self.source, "<torch-piecewise entry>", "exec"), scope)
        self.call: Callable[..., Any] = scope["entry"]
        self._explain: Callable[..., str | Relation | None] = scope["explain"]
        self._key: Callable[..., SizeKey] = scope["key"]

    def without_surroundings(self) -> Entry:
        """The same with the values of globals and closed-over variables taken as they were in the trace."""
        checks = (check for check in self.convention.checks if not check.surroundings)
        convention = dataclasses.replace(self.convention, checks=tuple(checks))
        return Entry(convention, self.shape, self.program)

    def call_with(self, find: Callable[[SizeKey], Runner], *args: Any, **kwargs: Any) -> Any:
        """The same call, run by what ``find`` gives for its size."""
        names = {"_tp_lookup": lambda _key: None, "_tp_find": find, "_tp_find_under_modes": find}
        own = self.call
        assert isinstance(own, types.FunctionType)
        scope = {**own.__globals__, **names}
        call = types.FunctionType(own.__code__, scope, own.__name__, own.__defaults__, own.__closure__)
        call.__kwdefaults__ = own.__kwdefaults__
        return call(*args, **kwargs)

    def tell_sizes(self, seen: Callable[[SizeKey], None]) -> None:
        """From now on call ``seen`` with the size of each call. What nobody asked for costs nothing."""
        scope = self.call.__globals__
        lookup = self.program.table.lookup

        def told(key: SizeKey) -> Runner | None:
            seen(key)
            return lookup(key)

        scope["_tp_lookup"] = told

    def why_not(self, *args: Any, **kwargs: Any) -> Mismatch:
        """Why a call is not one this entry was traced for, for people."""
        replaced = self.state.replaced_child()
        if replaced is not None:
            return Mismatch(f"submodule {replaced} was replaced")
        if not self.state.hooks_unchanged():
            return Mismatch("a module has other hooks than in the trace")
        reason = self._explain(*args, **kwargs)
        if isinstance(reason, Relation):
            error = self.program.rejection(reason, self._key(*args, **kwargs))
            return Mismatch(error.got or "", error.expected)
        return Mismatch(reason or "the call differs from the traced one")

    def size_error(self, *args: Any, **kwargs: Any) -> GuardError | None:
        """What ``evaluate_guards`` says of a call that fits in all but what the model asked of its sizes."""
        relation = self._explain(*args, **kwargs)
        if not isinstance(relation, Relation) or relation.assumed or relation.promised_by:
            return None
        error = self.program.rejection(relation, self._key(*args, **kwargs))
        return evaluation_error(error.expected or "", error.got or "")


def _is_static(spec: InputSpec | None) -> bool:
    return isinstance(spec, TensorSpec) and all(isinstance(dim, int) for dim in (*spec.size, *spec.stride))
