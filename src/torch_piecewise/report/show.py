"""Numbers and names as the page shows them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence

_HUES = (212, 28, 152, 330, 262, 50, 186, 4, 96, 290, 236, 128)
NOTHING = "\N{EN DASH}"
_GOLDEN_ANGLE = 137.5
_SIGNS = {"Eq": "=", "Ne": "≠"}
_READER = re.compile(r"L(?:\['\w+'\])*\['(\w+)'\]\.size\(\)\[(\d+)\]")


def hue(number: int) -> int:
    """The colour of the distinct piece of that number, as an angle: neighbours are far apart."""
    return _HUES[number] if number < len(_HUES) else int(number * _GOLDEN_ANGLE) % 360


def seconds(value: float | None) -> str:
    """A time for people; a dash for None."""
    if value is None:
        return NOTHING
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1 or unit == "µs":
            shown = value * scale
            return f"{shown:.0f} {unit}" if shown >= 100 else f"{shown:.3g} {unit}"
    return ""


def size(value: int | None) -> str:
    """Bytes for people; a dash for None."""
    if value is None:
        return NOTHING
    shown = float(value)
    for unit in ("B", "KiB", "MiB"):
        if shown < 1024:
            return f"{shown:.0f} {unit}" if unit == "B" else f"{shown:.1f} {unit}"
        shown /= 1024
    return f"{shown:.1f} GiB"


def count(number: int, noun: str) -> str:
    """``1 piece``, ``2 pieces``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def reader(text: str) -> str:
    """How a size is read from a call, without Dynamo's words."""
    return _READER.sub(r"\1.size(\2)", text)


def condition(text: str) -> str:
    """A condition on sizes, its outermost equality written as people write it."""
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return text
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 2):
        return text
    sign = _SIGNS.get(node.func.id)
    if sign is None:
        return text
    one, other = sorted(node.args, key=lambda side: isinstance(side, ast.Constant))  # the name first
    return f"{ast.unparse(one)} {sign} {ast.unparse(other)}"


def conditions(texts: Iterable[str]) -> list[str]:
    """Each condition once: two sides that are equal are so the other way round too."""
    shown: dict[frozenset[str], str] = {}
    for text in map(condition, texts):
        shown.setdefault(frozenset(text.split(" = ")), text)
    return list(shown.values())


def range_text(text: str) -> str:
    """A range with its open end as a sign."""
    return text.replace("inf]", "∞)")


def cut_short(text: str, length: int) -> str:
    """``text``, its end left out where it is longer than ``length``."""
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def op_label(name: str) -> str:
    """An operation's name, without where it is from if that makes it long."""
    return name if len(name) <= 24 else name.rpartition("::")[2].rpartition(".")[2]


def first_and_last(names: Sequence[str], most: int = 6) -> str:
    """A list of names with its middle left out."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} … {names[-1]}"
