"""A mapping that never changes, for fields of frozen values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FrozenMap(Mapping[K, V]):
    """An immutable, hashable, picklable mapping that keeps its order.

    Two of them are equal when they hold equal items in the same order; against any other mapping the
    order does not count (as with ``collections.OrderedDict``).

    Args:
        items: copied, not referred to. The values are not copied.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[K, V] | None = None) -> None:
        self._items: dict[K, V] = dict(items or {})

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenMap):
            return list(self._items.items()) == list(other._items.items())
        return self._items == other

    def __hash__(self) -> int:
        # Over the keys alone, so that a value without a hash (a list in an option) does no harm.
        return hash(frozenset(self._items))

    def __repr__(self) -> str:
        return repr(self._items)
