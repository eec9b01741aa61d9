"""How a traced call looks before and after: what two calls of alike blocks must have in common.

Dynamo's variable trackers and sources are private in all versions (2.11, 2.13).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.dicts import ConstDictVariable
from torch._dynamo.variables.lazy import LazyVariableTracker
from torch._dynamo.variables.lists import ListVariable, TupleVariable
from torch._dynamo.variables.tensor import SymNodeVariable, TensorVariable
from torch._guards import Source
from torch.fx import Node

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout)


class NotAlike(Exception):
    """Why a block is traced plainly instead of being copied; for people."""


def spec(value: Any) -> str:
    """What an operation can see of a fake value without its data."""
    if isinstance(value, torch.Tensor):
        parts: list[Any] = [type(value).__name__, value.dtype, value.device, value.layout, tuple(value.shape)]
        if value.layout is torch.strided:
            parts += [value.stride(), value.storage_offset()]
        parts += [value.requires_grad, value.is_leaf, value.is_conj(), value.is_neg(), value.is_inference()]
        return f"({', '.join(map(str, parts))})"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}[{', '.join(map(spec, value))}]"
    return f"{type(value).__name__} {value}"


def difference(one: str, other: str) -> str:
    """Both texts for people, from shortly before where they differ."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    start = max(0, same - 40)
    parts = [" ".join(f"{'...' if start else ''}{text[start : same + 40]}".split()) for text in (one, other)]
    return f"{parts[0]!r} and {parts[1]!r}"


def node_of(variable: VariableTracker) -> Node:
    """The graph node a realised tensor or symbolic number stands for."""
    node: Node = variable.as_proxy().node
    return node


def is_waiting(variable: VariableTracker) -> bool:
    """Whether Dynamo has not looked at it yet."""
    return isinstance(variable, LazyVariableTracker) and not variable.is_realized()


def is_sequence(variable: VariableTracker) -> TypeGuard[TupleVariable | ListVariable]:
    """Whether it is a plain tuple or list, and no kind of its own."""
    return type(variable) in (TupleVariable, ListVariable)


def opened(variable: VariableTracker) -> VariableTracker:
    """The tracker behind a lazy one that was looked at; a waiting one as it is."""
    if isinstance(variable, LazyVariableTracker) and variable.is_realized():
        return variable.realize()
    return variable


@dataclass
class Arguments:
    """A call's arguments.

    Attributes:
        form: equal for calls whose arguments a trace cannot tell apart, but for which tensors they are.
        leaves: the tensors and symbolic numbers, in order of first appearance.
        seen: by ``id``, every tracker in them.
    """

    form: str = ""
    leaves: list[VariableTracker] = field(default_factory=list)
    seen: dict[int, VariableTracker] = field(default_factory=dict)

    @staticmethod
    def of(args: Sequence[VariableTracker], kwargs: Mapping[str, VariableTracker]) -> Arguments:
        """Describe the arguments of one call.

        Raises:
            NotAlike: one is of a kind that cannot be compared.
        """
        view = Arguments()
        parts = [view._text(value) for value in args]
        parts += [f"{name}={view._text(value)}" for name, value in kwargs.items()]
        view.form = ", ".join(parts)
        return view

    def _text(self, variable: VariableTracker) -> str:
        variable = opened(variable)
        self.seen[id(variable)] = variable
        from_outside = "" if variable.source is None else "read "
        if is_waiting(variable):
            return from_outside + self._waiting(variable)
        if isinstance(variable, TensorVariable | SymNodeVariable):
            return from_outside + self._leaf(variable, spec(node_of(variable).meta.get("example_value")))
        if isinstance(variable, ConstantVariable):
            value = variable.as_python_constant()
            return f"{from_outside}{type(value).__name__} {value!r}"
        if variable.source is not None:
            return f"{type(variable).__name__} at {variable.source.name}"
        if is_sequence(variable):
            return f"{type(variable).__name__}[{', '.join(map(self._text, variable.items))}]"
        if type(variable) is ConstDictVariable and variable.user_cls is dict:
            items = [f"{self._text(key.vt)}: {self._text(item)}" for key, item in variable.items.items()]
            return f"dict{{{', '.join(items)}}}"
        raise NotAlike(f"an argument is a {type(variable).__name__} made in the trace")

    def _waiting(self, variable: Any) -> str:
        value = variable.peek_value()
        if type(value) in (torch.Tensor, torch.nn.Parameter):
            return "waiting " + self._leaf(variable, spec(value))
        if isinstance(value, PLAIN):
            return f"{type(value).__name__} {value!r}"
        return f"waiting {type(value).__name__} at {variable.source.name}"

    def _leaf(self, variable: VariableTracker, text: str) -> str:
        same = [i for i, leaf in enumerate(self.leaves) if _same_leaf(leaf, variable)]
        if not same:
            self.leaves.append(variable)
        return f"#{same[0] if same else len(self.leaves) - 1} {text}"


def _same_leaf(one: VariableTracker, other: VariableTracker) -> bool:
    one, other = opened(one), opened(other)
    if is_waiting(one) or is_waiting(other):
        return one.source is not None and one.source == other.source
    return node_of(one) is node_of(other)


class Places:
    """Where one block and its arguments are read from; writes other sources relative to that.

    Args:
        sources: the block's source first, then those of its arguments.
    """

    def __init__(self, sources: Sequence[Source | None]) -> None:
        self.sources = tuple(sources)
        names: dict[str, str] = {}
        for index, source in enumerate(self.sources):
            if source is not None:
                names.setdefault(source.name, f"§{index}")
        longest_first = sorted(names, key=len, reverse=True)
        self._names = names
        self._pattern = re.compile(f"(?:{'|'.join(map(re.escape, longest_first))})(?!\\w)")
        self._fragments = tuple(longest_first)

    def mention(self, text: str) -> bool:
        """Whether ``text`` is about something inside one of the places."""
        return any(name in text for name in self._fragments) and bool(self._pattern.search(text))

    def relative(self, text: str) -> str:
        """``text`` with each place by its number."""
        return self._pattern.sub(lambda match: self._names[match[0]], text)

    def to(self, others: Places) -> Callable[[Source], Source]:
        """Turns a source inside these places into the same one inside ``others``."""
        pairs: dict[Source, Source] = {}
        for mine, theirs in zip(self.sources, others.sources, strict=True):
            for one, other in zip(_marks(mine), _marks(theirs), strict=False):
                if one != other:
                    pairs.setdefault(one, other)
        return _Mover(pairs)


def _marks(source: Source | None) -> Iterable[Source]:
    """A place as it shows with and without the mark that it is a module."""
    while source is not None:
        yield source
        base = getattr(source, "base", None)
        source = base if isinstance(base, Source) and base.name == source.name else None


class _Mover:
    def __init__(self, pairs: Mapping[Source, Source]) -> None:
        self._known: dict[Source, Source] = dict(pairs)

    def __call__(self, source: Source) -> Source:
        known = self._known.get(source)
        if known is None:
            known = self._known[source] = self._moved(source)
        return known

    def _moved(self, source: Source) -> Source:
        assert dataclasses.is_dataclass(source)
        changes = {}
        for one in dataclasses.fields(source):
            part = getattr(source, one.name)
            if isinstance(part, Source) and (moved := self(part)) is not part:
                changes[one.name] = moved
        return dataclasses.replace(source, **changes) if changes else source


class Values:
    """Reads what sources stand for in the traced frame, remembering what lies on the way."""

    def __init__(self, tx: Any) -> None:
        root = tx.output.root_tx
        self._scope = {"G": root.f_globals, "L": root.f_locals}
        self._known: dict[Source, Any] = {}

    def of(self, source: Source) -> Any:
        """The value at ``source``.

        Raises:
            NotAlike: it cannot be read.
        """
        try:
            return source.get_value(self._scope, {}, self._known)
        except Exception as error:
            raise NotAlike(f"{source.name} cannot be read") from error


def same_value(old: Any, new: Any) -> bool:
    """Whether a trace that read ``old`` would have gone on the same way with ``new`` in its place.

    Of modules, tensors and plain objects only the kind counts here: what was read of them was read by
    sources of their own.
    """
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    if isinstance(old, PLAIN):
        return repr(old) == repr(new)
    if isinstance(old, torch.Tensor):
        return True
    if isinstance(old, Mapping):
        return list(old) == list(new)
    if isinstance(old, tuple | list):
        return len(old) == len(new) and _all_same(zip(old, new, strict=True))
    if isinstance(old, set | frozenset):
        return bool(old == new)
    if hasattr(old, "__func__"):
        return bool(old.__func__ is new.__func__)
    return not callable(old) or isinstance(old, torch.nn.Module)


def _all_same(pairs: Iterable[tuple[Any, Any]]) -> bool:
    return all(same_value(old, new) for old, new in pairs)
