"""Conditions on sizes that a trace or a compiler relied on, checked as plain Python."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import CodeType
from typing import Any


@dataclass(frozen=True)
class Relation:
    """One condition.

    Attributes:
        text: an expression over symbol names, as sympy prints it: ``"Eq(s0, 2*s1)"``, ``"s0 >= 3"``.
        where: the user's line that asked, ``file:line (code)``, or empty.
        assumed: whether torch took it for granted of a dynamic size, and no code of the model asked.
        promised_by: the setting whose promise it is, so that a violation is an error always; empty for what
            the trace relied on.
    """

    text: str
    where: str = ""
    assumed: bool = False
    promised_by: str = ""

    def shown(self, sources: Mapping[str, str]) -> str:
        """The condition and who asked for it, for people; ``sources`` as for :func:`readable`."""
        asked = f" (asked by {self.where})" if self.where else ""
        return readable(self.text, sources) + asked

    @cached_property
    def symbols(self) -> frozenset[str]:
        """The symbols it is about."""
        return frozenset(self._code.co_names) - FUNCTIONS.keys()

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it holds; one about a symbol that ``sizes`` lacks counts as holding.

        One that has no value for these sizes (a remainder of a division by 0) does not hold.
        """
        if not self.symbols <= sizes.keys():
            return True
        try:
            return bool(eval(self._code, {"__builtins__": {}, **FUNCTIONS}, dict(sizes)))
        except ArithmeticError:
            return False

    @cached_property
    def _code(self) -> CodeType:
        tree = _Truth().visit(ast.parse(self.text, mode="eval"))
        return compile(ast.fix_missing_locations(tree), f"<relation {self.text}>", "eval")


def size_of(text: int | str, sizes: Mapping[str, int]) -> int:
    """The size that an expression spells, as sympy prints it.

    Raises:
        NameError: it mentions a symbol that ``sizes`` lacks.
    """
    if isinstance(text, int):
        return text
    return int(eval(text, {"__builtins__": {}, **FUNCTIONS}, dict(sizes)))


def readable(text: str, sources: Mapping[str, str]) -> str:
    """``text`` with each symbol as people write it: ``x.size(0)`` for the source ``L['x'].size()[0]``."""
    shown = {
        symbol: re.sub(r"\.size\(\)\[(\d+)\]", r".size(\1)", re.sub(r"L\['(\w+)'\]", r"\1", source))
        for symbol, source in sources.items()
    }
    return re.sub(r"[A-Za-z_]\w*", lambda match: shown.get(match[0], match[0]), text)


class _Truth(ast.NodeTransformer):
    """Reads ``~x``, ``x & y`` and ``x | y`` as sympy means them: not, and, or of conditions."""

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return ast.UnaryOp(ast.Not(), node.operand) if isinstance(node.op, ast.Invert) else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.BitAnd | ast.BitOr):
            logic: ast.boolop = ast.And() if isinstance(node.op, ast.BitAnd) else ast.Or()
            return ast.BoolOp(logic, [node.left, node.right])
        return node


def _all(*conditions: Any) -> bool:
    return all(conditions)


def _any(*conditions: Any) -> bool:
    return any(conditions)


# What torch's symbolic shapes print: torch/utils/_sympy/functions.py, and sympy's own relations.
FUNCTIONS: dict[str, Callable[..., Any] | float] = {
    "Eq": operator.eq,
    "Ne": operator.ne,
    "Ge": operator.ge,
    "Gt": operator.gt,
    "Le": operator.le,
    "Lt": operator.lt,
    "And": _all,
    "Or": _any,
    "Not": operator.not_,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "CeilDiv": lambda a, b: -(-a // b),
    "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv,
    "FloatPow": operator.pow,
    "PowByNatural": operator.pow,
    "ModularIndexing": lambda base, divisor, modulus: (base // divisor) % modulus,
    "Max": max,
    "Min": min,
    "Abs": abs,
    "floor": math.floor,
    "ceiling": math.ceil,
    "TruncToInt": math.trunc,
    "ToFloat": float,
    "Where": lambda condition, a, b: a if condition else b,
    "Identity": lambda value: value,
    "True": True,
    "False": False,
    "int_oo": math.inf,
    "oo": math.inf,
}
