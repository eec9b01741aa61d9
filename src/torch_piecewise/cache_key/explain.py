"""Why there was no entry: the nearest one, and the ingredient that differs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch_piecewise.cache_key.base import Ingredient, Key, Scalar, ingredients_from_json
from torch_piecewise.errors import FingerprintError

_SHOWN = 60
_CONTEXT = 15


class Kept(Protocol):
    """An entry of a store, as far as this module looks at it."""

    @property
    def ingredients(self) -> Sequence[Any]:
        """As :meth:`Key.as_json` gave them."""
        ...

    @property
    def key(self) -> str:
        """Digest of the key."""
        ...


K = TypeVar("K", bound=Kept)


@dataclass(frozen=True, slots=True)
class Absent:
    """There is no ingredient of that name on this side."""


Side = Scalar | tuple[Ingredient, ...] | Absent


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where two keys differ.

    Attributes:
        path: names joined with dots, such as ``module.layers.3.eps``.
        ours: the value now.
        theirs: the value kept with the entry.
        weight: how many scalars are in it.
    """

    path: str
    ours: Side
    theirs: Side
    weight: int = 1

    def __str__(self) -> str:
        """``module.layers.3.eps: 1e-05 -> 1e-06``: as it was, and as it is now."""
        before, now = _text(self.theirs), _text(self.ours)
        pairs = enumerate(zip(before, now, strict=False))
        same = next((place for place, (left, right) in pairs if left != right), 0)
        # Of long texts the part that differs is shown, with a little before it.
        start = max(same - _CONTEXT, 0) if max(len(before), len(now)) > _SHOWN else 0
        return f"{self.path}: {_cut(before, start)} -> {_cut(now, start)}"


@dataclass(frozen=True, slots=True)
class Nearest(Generic[K]):
    """The entry that is most like a key.

    Attributes:
        differences: in the order of the ingredients; empty if the keys are equal.
    """

    entry: K
    differences: tuple[Difference, ...]


def differences(ours: Sequence[Ingredient], theirs: Sequence[Ingredient]) -> tuple[Difference, ...]:
    """Where two lists of ingredients differ, as deep inside as can be said."""
    return tuple(_differences(tuple(ours), tuple(theirs), ""))


def nearest(key: Key, entries: Iterable[K]) -> Nearest[K] | None:
    """The entry whose ingredients differ least from ``key``'s; of equally near ones the first.

    Args:
        entries: the most recently used first. One whose ingredients cannot be understood is no candidate.

    Returns:
        None if there is no candidate.
    """
    best: Nearest[K] | None = None
    least = (0, 0)
    for entry in entries:
        try:
            found = differences(key.ingredients, ingredients_from_json(entry.ingredients))
        except FingerprintError:
            continue
        # First by the kinds of ingredients (another tag is farther than many attributes), then by scalars.
        distance = (len({one.path.split(".", 1)[0] for one in found}), sum(one.weight for one in found))
        if best is None or distance < least:
            best, least = Nearest(entry, found), distance
    return best


def explain_miss(what: str, found: Nearest[Any] | None, *, at_most: int = 3) -> str:
    """One line that says why ``what`` was not in the store.

    Args:
        what: what was looked for, such as ``program 'backbone'``.
        found: from :func:`nearest`.
        at_most: how many differences are spelled out.
    """
    if found is None:
        return f"no {what} in the store: it has nothing of the kind yet"
    name = f"the nearest entry {found.entry.key[:12]}"
    return f"no {what} in the store: {name} {told_differences(found, at_most=at_most)}"


def told_differences(found: Nearest[Any], *, at_most: int = 3) -> str:
    """What follows "the nearest entry ..." in a sentence."""
    if not found.differences:
        return "has the same ingredients, so it was removed or damaged"
    spelled = "; ".join(str(one) for one in found.differences[:at_most])
    rest = len(found.differences) - at_most
    more = f"; and {rest} more" if rest > 0 else ""
    return f"differs in {spelled}{more}"


def _differences(
    ours: tuple[Ingredient, ...], theirs: tuple[Ingredient, ...], inside: str
) -> Iterator[Difference]:
    before = {ingredient.name: ingredient.value for ingredient in theirs}
    now = {ingredient.name: ingredient.value for ingredient in ours}
    for name, value in now.items():
        yield from _compare(_join(inside, name), value, before.get(name, Absent()))
    for name, value in before.items():
        if name not in now:
            yield from _compare(_join(inside, name), Absent(), value)
    shared_now = [name for name in now if name in before]
    shared_before = [name for name in before if name in now]
    if shared_now != shared_before:
        yield Difference(_join(inside, "(order)"), ", ".join(shared_now), ", ".join(shared_before))


def _compare(path: str, ours: Side, theirs: Side) -> Iterator[Difference]:
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        yield from _differences(ours, theirs, path)
    elif _spelled(ours) != _spelled(theirs):
        yield Difference(path, ours, theirs, max(_weight(ours), _weight(theirs)))


def _spelled(side: Side) -> str:
    # By spelling, as the digest goes by it: for Python 1 == 1.0 == True.
    if isinstance(side, Absent):
        return "absent"
    if isinstance(side, tuple):
        return "nested"
    return json.dumps(side)


def _weight(side: Side) -> int:
    if isinstance(side, tuple):
        return sum(_weight(part.value) for part in side) or 1
    return 0 if isinstance(side, Absent) else 1


def _join(inside: str, name: str) -> str:
    return ".".join(part for part in (inside, name) if part)


def _text(side: Side) -> str:
    if isinstance(side, Absent):
        return "(none)"
    if isinstance(side, tuple):
        return f"({_weight(side)} values)"
    return side if isinstance(side, str) else repr(side)


def _cut(text: str, start: int) -> str:
    if text.startswith("sha256:"):
        return text[:15]
    head, tail = "..." if start else "", "..." if len(text) - start > _SHOWN else ""
    return f"{head}{text[start : start + _SHOWN]}{tail}"
