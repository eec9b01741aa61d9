"""What a key is: an ordered list of named ingredients, and the digest of their one spelling."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch_piecewise.errors import FingerprintError

Scalar = None | bool | int | float | str

PythonValue = Any
"""Any Python object at all: what it is, is found out by looking at it."""

_SPELLING = b"torch-piecewise key 1\n"


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One named part of a key.

    Attributes:
        name: unique among its siblings; joined with dots it says where a difference is.
        value: a scalar (a float is finite), or more ingredients.
    """

    name: str
    value: Scalar | tuple[Ingredient, ...]

    def as_json(self) -> list[Any]:
        """``[name, value]``, as kept with an entry."""
        if isinstance(self.value, tuple):
            return [self.name, [part.as_json() for part in self.value]]
        return [self.name, self.value]


@dataclass(frozen=True, slots=True)
class Key:
    """The identity of something that can be kept."""

    ingredients: tuple[Ingredient, ...]

    @classmethod
    def of(cls, ingredients: Iterable[Ingredient]) -> Key:
        """A key, its names checked.

        Raises:
            FingerprintError: two siblings have one name, or a float is not finite.
        """
        ordered = tuple(ingredients)
        _check(ordered, "")
        return cls(ordered)

    def and_(self, *more: Ingredient) -> Key:
        """This key with more ingredients at its end.

        Raises:
            FingerprintError: a name is taken.
        """
        return Key.of((*self.ingredients, *more))

    def as_json(self) -> list[Any]:
        """The ingredients as kept with an entry."""
        return [ingredient.as_json() for ingredient in self.ingredients]

    def digest(self) -> str:
        """SHA-256 of the ingredients' one spelling: 64 hexadecimal digits."""
        text = json.dumps(self.as_json(), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        return hashlib.sha256(_SPELLING + text.encode("ascii")).hexdigest()


def ingredients_from_json(document: Sequence[Any]) -> tuple[Ingredient, ...]:
    """Ingredients as an entry keeps them.

    Raises:
        FingerprintError: the document is not a list of ``[name, value]``.
    """
    return tuple(_from_json(pair) for pair in document)


def short_digest(data: bytes | str) -> str:
    """``sha256:`` and 32 digits: how ingredients name content that is too long to be one."""
    text = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return f"sha256:{hashlib.sha256(text).hexdigest()[:32]}"


def _from_json(pair: PythonValue) -> Ingredient:
    fits = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
    if not fits or not isinstance(pair[0], str):
        raise FingerprintError("An ingredient is mistyped", expected="[name, value]", got=repr(pair)[:200])
    name, value = pair
    if value is None or isinstance(value, bool | int | float | str):
        return Ingredient(name, value)
    if isinstance(value, Sequence):
        return Ingredient(name, ingredients_from_json(value))
    raise FingerprintError(
        f"The ingredient {name!r} is mistyped", expected="a scalar or a list", got=type(value).__name__
    )


def _check(ingredients: tuple[Ingredient, ...], inside: str) -> None:
    names = set()
    for ingredient in ingredients:
        path = f"{inside}.{ingredient.name}" if inside else ingredient.name
        if ingredient.name in names:
            raise FingerprintError(
                f"Two ingredients of a key are both called {path!r}",
                hint="name one of them otherwise, or put them together into one",
            )
        names.add(ingredient.name)
        if isinstance(ingredient.value, tuple):
            _check(ingredient.value, path)
        elif isinstance(ingredient.value, float) and not math.isfinite(ingredient.value):
            raise FingerprintError(
                f"The ingredient {path!r} is not finite",
                expected="a finite float",
                got=repr(ingredient.value),
            )
