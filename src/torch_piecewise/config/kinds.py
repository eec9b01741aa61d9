"""The kinds of value a setting can have: how each is checked, normalised and read from text.

A kind has two verbs. ``check`` takes what the user gave and returns what the field holds, or raises
:class:`~torch_piecewise.errors.ConfigError`; ``parse`` takes the text of an environment variable and
returns something for ``check``. A kind that has subordinate parts is built from other kinds.
"""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch_piecewise.errors import ConfigError, did_you_mean
from torch_piecewise.frozen_map import FrozenMap


class Kind(Protocol):
    """What values a setting takes."""

    @property
    def expected(self) -> str:
        """What a right value looks like, for messages and tables."""

    def check(self, label: str, value: object) -> Any:
        """The value a field holds for what the user gave; ``label`` names it in errors."""

    def parse(self, text: str) -> object:
        """What an environment variable's text stands for; ``ValueError`` where it is malformed."""


def bad_value(label: str, kind: Kind, value: object, hint: str | None = None) -> ConfigError:
    """The error for a value that is not of its kind: what, expected, got, what to do."""
    return ConfigError(
        f"{label} has a value it cannot have",
        expected=kind.expected,
        got=f"{value!r} ({type(value).__name__})",
        hint=hint or "give a value of the expected form, or leave the field out for its default",
    )


def as_int(value: object) -> int | None:
    """``value`` as a plain int, None where it is none. A bool is none: it is hardly ever meant as one."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True)
class Bool:
    """True or False."""

    @property
    def expected(self) -> str:
        return "True or False"

    def check(self, label: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise bad_value(label, self, value)
        return value

    def parse(self, text: str) -> object:
        word = text.lower()
        return True if word in _TRUE else False if word in _FALSE else text


@dataclass(frozen=True)
class Int:
    """An integer, ``least`` or more, and less than two to the power of ``bits`` unless that is None."""

    least: int
    bits: int | None = None

    @property
    def expected(self) -> str:
        return f"an integer >= {self.least}{f' and < 2**{self.bits}' if self.bits is not None else ''}"

    def check(self, label: str, value: object) -> int:
        number = as_int(value)
        if number is None or number < self.least or (self.bits is not None and number >= 2**self.bits):
            raise bad_value(label, self, value)
        return number

    def parse(self, text: str) -> object:
        return int(text)


@dataclass(frozen=True)
class Seconds:
    """A positive duration."""

    @property
    def expected(self) -> str:
        return "a number of seconds > 0"

    def check(self, label: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise bad_value(label, self, value)
        return float(value)

    def parse(self, text: str) -> object:
        return float(text)


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def expected(self) -> str:
        return f"one of {', '.join(map(repr, self.words))}"

    def check(self, label: str, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise bad_value(label, self, value, did_you_mean(value, self.words))
        return value

    def parse(self, text: str) -> object:
        return text


_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+(:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)?")


@dataclass(frozen=True)
class Dotted:
    """The dotted name of something importable (``package.module.Name``), or one of a few words."""

    words: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        names = "a dotted name such as 'package.module.Name'"
        return f"one of {', '.join(map(repr, self.words))}, or {names}" if self.words else names

    def check(self, label: str, value: object) -> str:
        if isinstance(value, str) and (value in self.words or _DOTTED.fullmatch(value)):
            return value
        raise bad_value(label, self, value, did_you_mean(value, self.words))

    def parse(self, text: str) -> object:
        return text


@dataclass(frozen=True)
class Location:
    """A path or a URL; a leading ``~`` is the home directory."""

    @property
    def expected(self) -> str:
        return "a path (str or os.PathLike) that is not empty"

    def check(self, label: str, value: object) -> str:
        # Not a pathlib.Path: one would fold the two slashes of a URL of a remote store into one.
        text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
        if not isinstance(text, str) or not text:
            raise bad_value(label, self, value)
        return os.path.expanduser(text) if text.startswith("~") else text  # noqa: PTH111 - as above

    def parse(self, text: str) -> object:
        return text


@dataclass(frozen=True)
class Name:
    """A Python or environment identifier."""

    @property
    def expected(self) -> str:
        return "a name (letters, digits, underscores)"

    def check(self, label: str, value: object) -> str:
        if not isinstance(value, str) or not value.isidentifier():
            raise bad_value(label, self, value)
        return value

    def parse(self, text: str) -> object:
        return text


@dataclass(frozen=True)
class OrNone:
    """Another kind, or None."""

    kind: Kind

    @property
    def expected(self) -> str:
        return f"{self.kind.expected}; or None"

    def check(self, label: str, value: object) -> Any:
        return None if value is None else self.kind.check(label, value)

    def parse(self, text: str) -> object:
        return None if text.lower() in ("none", "null") else self.kind.parse(text)


@dataclass(frozen=True)
class OrWord:
    """Another kind, or one word with a meaning of its own."""

    kind: Kind
    word: str

    @property
    def expected(self) -> str:
        return f"{self.kind.expected}, or the word {self.word!r}"

    def check(self, label: str, value: object) -> Any:
        if isinstance(value, str) and value == self.word:
            return value
        if isinstance(value, str):
            raise bad_value(label, self, value, did_you_mean(value, [self.word]))
        try:
            return self.kind.check(label, value)
        except ConfigError:
            raise bad_value(label, self, value) from None

    def parse(self, text: str) -> object:
        return text if text == self.word else self.kind.parse(text)


def _keep(items: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(items))


def in_order(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sorted as numbers, each once; words come after the numbers."""
    numbers = sorted({item for item in items if isinstance(item, int)})
    return (*numbers, *_keep(tuple(item for item in items if not isinstance(item, int))))


@dataclass(frozen=True)
class Items:
    """A list of values of one kind, held as a tuple without duplicates; None is the empty list.

    Attributes:
        kind: of each item.
        arrange: puts the checked items into the order the field holds them in.
        example: shown to whoever gave something that is no list.
    """

    kind: Kind
    example: str
    arrange: Callable[[tuple[Any, ...]], tuple[Any, ...]] = _keep

    @property
    def expected(self) -> str:
        return f"a list, such as {self.example}, of: {self.kind.expected}"

    def check(self, label: str, value: object) -> tuple[Any, ...]:
        if value is None:
            return ()
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise bad_value(label, self, value, f"write a list: {self.example}")
        # A set has no order of its own, and one that changes with the process would change cache keys.
        items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        checked = (self.kind.check(f"{label}[{i}]", item) for i, item in enumerate(items))
        return self.arrange(tuple(checked))

    def parse(self, text: str) -> object:
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [self.kind.parse(part.strip()) for part in text.split(",") if part.strip()]


@dataclass(frozen=True)
class Table:
    """A mapping from text to values, held as a :class:`FrozenMap`; None is the empty one.

    Attributes:
        what: what it maps, for messages.
        entry: called with a label and each value; returns what the field holds.
        ordered: whether the order means something; sorted by key otherwise.
    """

    what: str
    entry: Callable[[str, object], object]
    ordered: bool = False

    @property
    def expected(self) -> str:
        return f"a mapping {self.what}"

    def check(self, label: str, value: object) -> FrozenMap[str, Any]:
        value = {} if value is None else value
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise bad_value(label, self, value)
        keys = list(value) if self.ordered else sorted(value)
        return FrozenMap({key: self.entry(f"{label}[{key!r}]", value[key]) for key in keys})

    def parse(self, text: str) -> object:
        return json.loads(text)
