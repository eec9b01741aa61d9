"""Lists and dicts that a traced call writes to: which of what it read of them has to be compared.

A trace that appends to a list writes the whole list on each call: the elements it had in the trace, and the
new one. So it is right only for a list that is as long as that one was, and holds the same plain values.
"""

from __future__ import annotations

import dis
import re
import types
from collections import deque
from typing import Any

from torch_piecewise.convention import Check

_WRITES = frozenset(("STORE_SUBSCR", "STORE_SLICE", "DELETE_SUBSCR"))
_WRITERS = frozenset(("append", "clear", "extend", "insert", "pop", "remove", "reverse", "update"))
# What can stand in a check as it is: attributes, and items under a number, a text, or the key in some place.
_STEPS = r"(?:\.\w+|\['[^']*'\]|\[\d+\])*"
_KEY = rf"\[list\(dict\.keys\(L\['\w+'\]{_STEPS}\)\)\[\d+\]\]"
_PLAIN_PATH = re.compile(rf"[LG]\['\w+'\]{_STEPS}(?:{_KEY}{_STEPS})*")


def writes_containers(code: types.CodeType) -> bool:
    """Whether ``code`` changes what some list or mapping holds."""
    steps = list(dis.get_instructions(code))
    called = {
        step.argval for step in steps if step.opname.startswith("LOAD_") and isinstance(step.argval, str)
    }
    return bool(called & _WRITERS) or any(step.opname in _WRITES for step in steps)


def is_container(path: str, value: Any) -> bool:
    """Whether the length of ``value``, found by ``path``, can be compared on each call."""
    return isinstance(value, list | dict | set | deque) and _PLAIN_PATH.fullmatch(path) is not None


def is_item(path: str) -> bool:
    """Whether ``path`` finds what a list or mapping holds."""
    return path.endswith("]") and path.count("[") > 1 and _PLAIN_PATH.fullmatch(path) is not None


def as_long(expression: str, shown: str, value: Any) -> Check:
    """``expression`` gives something as long as ``value``."""
    return Check(
        f"len({expression}) == {len(value)}",
        f"{shown} had length {len(value)} in the trace",
        f"len({expression})",
    )
