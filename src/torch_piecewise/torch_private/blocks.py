"""Trace blocks that are alike once: the door into Dynamo, and who decides at each call.

torch's own way (``torch.compiler.nested_compile_region``) needs a decorated class, knows no aliasing or
nested results, and traces every call again in 2.11; in 2.13 it gives up at a label or an index that differs
from block to block (https://github.com/pytorch/pytorch/issues/191781) and at objects among the arguments
(https://github.com/pytorch/pytorch/issues/191758). Here each call of a module that is traced is either traced
as ever and written down, or copied from what was written down, node by node, into the same flat graph.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from torch._dynamo.side_effects import SideEffects
from torch._dynamo.variables.base import AttributeMutationExisting, ValueMutationExisting, VariableTracker
from torch._dynamo.variables.builder import VariableBuilder
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.nn_module import UnspecializedNNModuleVariable
from torch.nn import Module

from torch_piecewise.torch_private.block_copies import Copy, CopyFailed, own_object
from torch_piecewise.torch_private.block_fakes import FakeParameters
from torch_piecewise.torch_private.block_recorder import Recorder, held_outside
from torch_piecewise.torch_private.block_tape import Label, Surroundings, Tape
from torch_piecewise.torch_private.block_views import Arguments, NotAlike, difference

logger = logging.getLogger("torch_piecewise")

_FEWEST = 3
"""So many modules of a class make copying worth the bookkeeping: the second confirms the first."""

_MOST_TRIES = 3
"""So many calls of a class may turn out unlike each other before its calls are no longer written down."""


class Blocks:
    """Decides, for each call of a module in one trace, whether it is traced or copied.

    Args:
        modules: what the traced model consists of, each once.
        unread: how the trace names an object of which the caller reads no guards but those on plain values.

    Attributes:
        shared: calls that were copied.
        active: whether anything was done that a plain trace does not do.
        reasons: class name -> why a call of it was traced plainly.
    """

    def __init__(self, modules: Sequence[Module] = (), unread: str | None = None) -> None:
        self._unread = unread
        classes = Counter(map(type, modules))
        self._classes = {kind for kind, count in classes.items() if count >= _FEWEST}
        self._parameters = FakeParameters(modules if self._classes else ())
        self.active = False
        self._begin(None)

    def _begin(self, output: Any) -> None:
        # Dynamo starts over within one trace, with a new graph.
        self._output = output
        self.shared = 0
        self.reasons: dict[str, str] = {}
        self._tapes: dict[type, list[Tape]] = {}
        self._trusted: set[int] = set()
        self._tries: Counter[type] = Counter()
        self._recorders: list[Recorder] = []
        self._epoch = 0
        self._held: dict[int, VariableTracker] = {}

    def call(
        self, plain: Callable[..., VariableTracker], variable: Any, tx: Any, args: Any, kwargs: Any
    ) -> Any:
        """Trace or copy one call of a module."""
        if tx.output is not self._output:
            self._begin(tx.output)
        kind = type(variable.value)
        if kind not in self._classes or type(variable) is not UnspecializedNNModuleVariable:
            return plain(variable, tx, args, kwargs)
        if self._tries[kind] >= _MOST_TRIES and not self._tapes.get(kind):
            return plain(variable, tx, args, kwargs)
        try:
            view, around = self._look(variable, tx, args, kwargs)
            copy = self._copy(variable, tx, view, around)
        except NotAlike as reason:
            self._note(kind, reason)
            return plain(variable, tx, args, kwargs)
        if copy is not None:
            self.shared += 1
            result = copy.make(is_written_down=bool(self._recorders))
            for recorder in self._recorders:
                recorder.labels.update(copy.labels)
            return result
        return self._written_down(plain, variable, tx, args, kwargs, view, around)

    def _look(self, variable: Any, tx: Any, args: Any, kwargs: Any) -> tuple[Arguments, Surroundings]:
        if not tx.output.is_root_tracer() or variable.source is None:
            raise NotAlike("it is called inside a nested graph, or made in the trace")
        return Arguments.of(args, kwargs), Surroundings.of(tx)

    def _copy(self, variable: Any, tx: Any, view: Arguments, around: Surroundings) -> Copy | None:
        kind = type(variable.value)
        for tape in self._tapes.get(kind, ()):
            if id(tape) not in self._trusted:
                continue
            if tape.epoch != self._epoch:
                self._note(kind, NotAlike("an object outside was changed between two calls"))
                continue
            try:
                return Copy(tape, tx, variable, view, around, self._parameters)
            except NotAlike as reason:
                self._note(kind, reason)
        return None

    def _written_down(
        self,
        plain: Callable[..., VariableTracker],
        variable: Any,
        tx: Any,
        args: Any,
        kwargs: Any,
        view: Arguments,
        around: Surroundings,
    ) -> VariableTracker:
        kind = type(variable.value)
        try:
            recorder = Recorder(tx, variable, view, around, self._epoch, self._unread)
        except NotAlike as reason:
            self._note(kind, reason)
            return plain(variable, tx, args, kwargs)
        self._held |= held_outside(tx.output.side_effects)
        self.active = True
        self._recorders.append(recorder)
        try:
            result = plain(variable, tx, args, kwargs)
        finally:
            self._recorders.pop()
        for outer in self._recorders:
            outer.labels.update(recorder.labels)
            outer.spoiled |= recorder.spoiled
        try:
            self._keep(kind, recorder.tape(result))
        except NotAlike as reason:
            self._tries[kind] += 1
            self._note(kind, reason)
        return result

    def _keep(self, kind: type, tape: Tape) -> None:
        known = self._tapes.setdefault(kind, [])
        for other in known:
            if other.form == tape.form and other.block is not tape.block:
                self._trusted |= {id(other)}
                return
        self._tries[kind] += bool(known)
        if known and known[-1].form == tape.form:
            self._note(kind, NotAlike("one module is called again and again"))
        elif known:
            self._note(kind, NotAlike(f"two were traced as {_first_difference(known[-1].form, tape.form)}"))
        if self._tries[kind] < _MOST_TRIES:
            known.append(tape)

    def _note(self, kind: type, reason: NotAlike) -> None:
        self.reasons[kind.__name__] = str(reason)
        logger.debug("a %s is traced by itself: %s", kind.__name__, reason)

    # -- what Dynamo tells in between

    def changed(self, item: VariableTracker) -> None:
        """Something is about to change ``item``."""
        existing = isinstance(item.mutation_type, AttributeMutationExisting | ValueMutationExisting)
        outside = existing or item.source is not None or id(item) in self._held
        self._epoch += outside
        for recorder in self._recorders:
            if outside or id(item) in recorder.view.seen:
                recorder.effects.append(item.source.name if item.source is not None else "an argument")

    def constant(self, variable: Any, source: Any) -> Any:
        """A constant was read: a string of a block that is written down is watched from here on."""
        inside = [one for one in self._recorders if one.places.mention(source.name)]
        if not inside or type(variable) is not ConstantVariable or type(variable.value) is not str:
            return variable
        if len(variable.value) < 2:  # such strings are one object everywhere
            return variable
        return _WatchedString(variable.value, source, inside)


class _WatchedString(ConstantVariable):
    """A string that tells when Dynamo does more with it than hand it to an operation."""

    def __init__(self, value: str, source: Any, recorders: list[Recorder]) -> None:
        label = Label(own_object(value), source)
        self._label = label
        self._watchers = recorders
        for recorder in recorders:
            recorder.labels[id(label.text)] = label
        super().__init__(value, source=source)

    @property
    def value(self) -> str:
        for recorder in self._watchers:
            recorder.spoiled.add(self._label.source.name)
        return self._label.text

    @value.setter
    def value(self, value: str) -> None:
        """Set by the constructor, to what the label holds."""

    def as_proxy(self) -> str:
        return self._label.text


def _first_difference(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    pairs = zip(one, other, strict=False)
    return next((difference(a, b) for a, b in pairs if a != b), f"{len(one)} and {len(other)} steps")


def modules_in(holders: Any) -> list[Module]:
    """The modules that hang on ``holders``: modules, or objects that hold some."""
    modules: dict[int, Module] = {}
    for holder in holders:
        found = [holder, *getattr(holder, "__dict__", {}).values()]
        for root in found:
            # Its type is asked, not the object: some warn when an attribute of theirs is read.
            if issubclass(type(root), Module):
                modules |= {id(module): module for module in root.modules()}
    return list(modules.values())


_CURRENT: ContextVar[Blocks | None] = ContextVar("torch_piecewise_blocks", default=None)
_DOOR = threading.RLock()


@contextlib.contextmanager
def sharing(blocks: Blocks) -> Iterator[None]:
    """Let ``blocks`` decide about the calls of modules in the traces inside the context.

    Replaces three methods of Dynamo while it lasts, because Dynamo has no hook at the call of a module; in
    other threads they do what they always do. One such context at a time.
    """
    call, change, build = (
        UnspecializedNNModuleVariable.call_function,
        SideEffects.check_allowed_side_effect,
        VariableBuilder.__call__,
    )

    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        current = _CURRENT.get()
        return call(self, tx, args, kwargs) if current is None else current.call(call, self, tx, args, kwargs)

    def check_allowed_side_effect(self: Any, item: Any) -> Any:
        current = _CURRENT.get()
        if current is not None:
            current.changed(item)
        return change(self, item)

    def build_variable(self: Any, value: Any) -> Any:
        variable, current = build(self, value), _CURRENT.get()
        return variable if current is None else current.constant(variable, self.source)

    with _DOOR:
        token = _CURRENT.set(blocks)
        UnspecializedNNModuleVariable.call_function = call_function  # type: ignore[method-assign]
        SideEffects.check_allowed_side_effect = check_allowed_side_effect  # type: ignore[method-assign]
        VariableBuilder.__call__ = build_variable  # type: ignore[method-assign]
        try:
            yield
        finally:
            UnspecializedNNModuleVariable.call_function = call  # type: ignore[method-assign]
            SideEffects.check_allowed_side_effect = change  # type: ignore[method-assign]
            VariableBuilder.__call__ = build  # type: ignore[method-assign]
            _CURRENT.reset(token)


__all__ = ["Blocks", "CopyFailed", "modules_in", "sharing"]
