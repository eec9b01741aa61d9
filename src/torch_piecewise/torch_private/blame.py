"""Which operation of a piece a compiler's error is about, if the error says so."""

from __future__ import annotations

import re

from torch.fx import GraphModule, Node

from torch_piecewise.torch_private.nodes import target_label, user_line

# How Inductor's lowering errors carry the op (``LoweringException``, 2.11 and 2.13).
_LOWERED = re.compile(r"^\s*target: (?:\w+\.)?(\w+)", re.MULTILINE)
# How ops are spelled.
_SPELLED = re.compile(
    r"\b\w+::(\w+)|\b(?:aten|prims|prim|torch|functional)\.(\w+)|[`'\"](\w+)[`'\"]|\b(\w+)\("
)
_WORD = re.compile(r"[A-Za-z_]\w*")

# Ops whose names are words of prose as well: they count where they are spelled as ops.
_PROSE_TEXT = """
    add all and any chunk copy divide expand fill flip float full getitem int index item like long mean
    min max mul neg not or pad pow range repeat reshape roll round scatter select size sort split square
    stack sub sum t take to type unbind values view where zero
"""
_PROSE = frozenset(_PROSE_TEXT.split())


def blamed(error: BaseException, graph: GraphModule) -> str:
    """The failing op of ``graph`` and the user's line it came from; or that the error names none.

    Args:
        error: a compiler's, which names ops as torch does or as it likes.
    """
    operations = [n for n in graph.graph.nodes if n.op in ("call_function", "call_method", "call_module")]
    names = _named(str(error))
    for name in names:
        found = next((node for node in operations if _is_called(node, name)), None)
        if found is not None:
            return f"the failing op is {target_label(found)}, from {user_line(found)}"
    lowered = _LOWERED.search(str(error))
    if lowered is not None:
        return f"the failing op is {lowered[1]}{_lines(', from somewhere in ', operations)}"
    return f"the compiler does not say which op it failed at{_lines('; the piece is from ', operations)}"


def _named(text: str) -> list[str]:
    """What may be names of ops in ``text``, the surest first."""
    spelled = [name for groups in _SPELLED.findall(text) for name in groups if name]
    words = [word for word in _WORD.findall(text) if word.lower() not in _PROSE]
    return list(dict.fromkeys([*_LOWERED.findall(text), *spelled, *words]))


def _is_called(node: Node, name: str) -> bool:
    return name in (target_label(node), target_label(node).partition(".")[0])


def _lines(before: str, operations: list[Node]) -> str:
    """``before``, and from the user's first line to the last one; empty where none is known."""
    places = [place for place in map(user_line, operations) if place != "an unknown line"]
    if not places:
        return ""
    return before + (places[0] if places[0] == places[-1] else f"{places[0]} to {places[-1]}")
