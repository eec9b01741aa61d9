"""The table of settings that ``Config.describe()`` shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_WIDEST = 32
"""Characters of a value that the table shows."""


@dataclass(frozen=True)
class FieldDoc:
    """One row of the table of settings.

    Attributes:
        name: the field.
        value: what it is.
        source: where that comes from: ``default``, ``given``, or the environment variable.
        default: what it is where nothing is said.
        expected: which values it takes.
        doc: what it means, whole.
        used_by: the module that acts on it.
        env_var: the environment variable that sets it.
    """

    name: str
    value: object
    source: str
    default: object
    expected: str
    doc: str
    used_by: str
    env_var: str

    @property
    def meaning(self) -> str:
        """The first statement of :attr:`doc`: one line."""
        return re.split(r"[:;] |\. ", self.doc.removesuffix("."), maxsplit=1)[0]


class ConfigTable(tuple[FieldDoc, ...]):
    """One :class:`FieldDoc` per setting, in order; prints as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        head = ("field", "value", "from", "meaning")
        rows = [head, *((row.name, _short(row.value), row.source, row.meaning) for row in self)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
            for row in rows
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    __repr__ = __str__


class Describe:
    """``Config.describe()`` and ``config.describe()``: the class describes what the environment sets."""

    def __get__(self, instance: Any, owner: Any) -> Callable[[], ConfigTable]:
        def describe() -> ConfigTable:
            """Every setting with its value, where that comes from, and its meaning; prints as a table.

            Of the class: as a model compiled without settings would have them, the environment read.

            Raises:
                ConfigError: the environment holds a setting that cannot be read.
            """
            config = owner.from_env() if instance is None else instance
            return ConfigTable(config.rows())

        return describe


def _short(value: object) -> str:
    # A named value of an enumeration reads better than its repr.
    text = repr(getattr(value, "name", value))
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
