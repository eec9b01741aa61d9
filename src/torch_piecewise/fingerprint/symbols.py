"""Canonical names for the symbolic sizes of a piece.

A symbol is called ``d0``, ``d1``, ... here: first those that stand alone as a dim of an input, in the
order in which they occur, then those that occur only inside expressions, then the rest in the piece's
own order. Sums, products and whole powers are put into sympy's normal form; any other operation stays
as it is written.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

import sympy

from torch_piecewise.errors import FingerprintError
from torch_piecewise.piece import Dim, InputSpec, IntSpec, Piece, Symbol, TensorSpec
from torch_piecewise.ranges import UNBOUNDED

_NAME = re.compile(r"[^\W\d]\w*")
_ORDERLESS = frozenset({"Max", "Min", "Eq", "Ne", "And", "Or"})
_OPERATORS: dict[type[ast.AST], str] = {
    ast.FloorDiv: "FloorDiv",
    ast.Mod: "Mod",
    ast.Pow: "Pow",
    ast.LShift: "LShift",
    ast.RShift: "RShift",
    ast.BitAnd: "And",
    ast.BitOr: "Or",
    ast.Eq: "Eq",
    ast.NotEq: "Ne",
    ast.Lt: "Lt",
    ast.LtE: "Le",
    ast.And: "And",
    ast.Or: "Or",
    ast.Not: "Not",
    ast.Invert: "Not",
}


class SymbolNames:
    """Writes dims and relations of one piece in canonical names.

    Args:
        piece: gives the symbols, and the order of their first mention.

    Raises:
        FingerprintError: two symbols share a name, or the dispatch symbol is none of them.
    """

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        declared = {symbol.name: symbol for symbol in piece.symbols}
        if len(declared) != len(piece.symbols):
            raise self._malformed("declares two symbols of one name", str([s.name for s in piece.symbols]))
        if piece.dispatch is not None and piece.dispatch not in declared:
            raise self._malformed("dispatches on a symbol that it does not declare", piece.dispatch)
        order = [name for name in _mentions(piece.inputs) if name in declared]
        self._symbols = [declared[name] for name in dict.fromkeys([*order, *declared])]
        self._names = {symbol.name: f"d{number}" for number, symbol in enumerate(self._symbols)}
        self._texts: dict[str, str] = {}

    def text(self, dim: Dim) -> str:
        """Canonical text of a size.

        Raises:
            FingerprintError: it is no expression over the piece's symbols.
        """
        if isinstance(dim, int):
            return str(dim)
        name = self._names.get(dim)
        if name is not None:
            return name
        if dim not in self._texts:
            self._texts[dim] = str(self._parsed(dim))
        return self._texts[dim]

    def dims(self, dims: Iterable[Dim]) -> str:
        """Canonical text of a shape."""
        return f"({', '.join([self.text(dim) for dim in dims])})"

    def lines(self) -> list[str]:
        """One line per symbol, in canonical order, then one per relation, sorted."""
        symbols = [self._symbol_line(symbol) for symbol in self._symbols]
        return symbols + sorted({f"relation {self.text(relation)}" for relation in self._piece.relations})

    def _symbol_line(self, symbol: Symbol) -> str:
        upper = "inf" if symbol.upper == UNBOUNDED else str(symbol.upper)
        origin = "backed" if symbol.backed else "unbacked"
        dispatch = " dispatch" if symbol.name == self._piece.dispatch else ""
        return f"symbol {self._names[symbol.name]} in [{symbol.lower}, {upper}] {origin}{dispatch}"

    def _parsed(self, text: str) -> sympy.Basic:
        # sympy's own parser evaluates its input as Python; this one only walks it.
        try:
            return self._expression(ast.parse(text, mode="eval").body)
        except (SyntaxError, ValueError) as error:
            raise self._malformed("has a size that is no expression", f"{text!r}: {error}") from error

    def _expression(self, node: ast.expr) -> sympy.Basic:
        match node:
            case ast.Constant(value=bool() | float() as value):
                return sympy.Symbol(repr(value))
            case ast.Constant(value=int() as value):
                return sympy.Integer(value)
            case ast.Name(id=name):
                return self._symbol(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._expression(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._expression(operand)
            case ast.UnaryOp(op=operator, operand=operand):
                return _opaque(_OPERATORS[type(operator)], [self._expression(operand)])
            case ast.BinOp(left=left, op=operator, right=right):
                return _arithmetic(operator, self._expression(left), self._expression(right))
            case ast.BoolOp(op=operator, values=values):
                return _opaque(_OPERATORS[type(operator)], [self._expression(value) for value in values])
            case ast.Compare(left=left, ops=operators, comparators=comparators):
                return self._comparison(operators, [left, *comparators])
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return _opaque(name, [self._expression(argument) for argument in arguments])
        raise self._malformed("has a size that is no expression over symbols", ast.unparse(node))

    def _symbol(self, name: str) -> sympy.Basic:
        if name in self._names:
            return sympy.Symbol(self._names[name], integer=True)
        if name in ("oo", "int_oo"):
            return sympy.Symbol(name)
        raise self._malformed("mentions a symbol that it does not declare", name)

    def _comparison(self, operators: list[ast.cmpop], nodes: list[ast.expr]) -> sympy.Basic:
        sides = [self._expression(node) for node in nodes]
        links = [
            _compared(operator, left, right)
            for operator, left, right in zip(operators, sides, sides[1:], strict=False)
        ]
        return links[0] if len(links) == 1 else _opaque("And", links)

    def _malformed(self, what: str, got: str) -> FingerprintError:
        return FingerprintError(
            f"Piece {self._piece.name} {what}",
            expected=f"expressions over {[symbol.name for symbol in self._piece.symbols]}",
            got=got,
            hint="list every symbol of the piece once in Piece.symbols",
        )


def _mentions(inputs: Iterable[InputSpec]) -> Iterator[str]:
    """Names that stand alone as a dim, then those inside expressions.

    An expression's text orders symbols by their names, so what it mentions first depends on them.
    """
    texts = [dim for spec in inputs for dim in _dims(spec) if isinstance(dim, str)]
    yield from (text for text in texts if _NAME.fullmatch(text))
    for text in texts:
        yield from _NAME.findall(text)


def _dims(spec: InputSpec) -> Iterator[Dim]:
    if isinstance(spec, TensorSpec):
        yield from (*spec.size, *spec.stride, spec.storage_offset)
    elif isinstance(spec, IntSpec):
        yield spec.value


def _arithmetic(operator: ast.operator, left: sympy.Basic, right: sympy.Basic) -> sympy.Basic:
    match operator:
        case ast.Add():
            return sympy.Add(left, right)
        case ast.Sub():
            return sympy.Add(left, sympy.Mul(-1, right))
        case ast.Mult():
            return sympy.Mul(left, right)
        case ast.Div() if right.is_Integer and right != 0:
            return sympy.Mul(left, sympy.Rational(1, right))
        case ast.Div():
            return _opaque("Div", [left, right])
        case ast.Pow() if right.is_Integer and right >= 0:
            return sympy.Pow(left, right)
    if type(operator) not in _OPERATORS:
        raise ValueError(f"unknown operator {type(operator).__name__}")
    return _opaque(_OPERATORS[type(operator)], [left, right])


def _compared(operator: ast.cmpop, left: sympy.Basic, right: sympy.Basic) -> sympy.Basic:
    if isinstance(operator, ast.Gt | ast.GtE):
        return _opaque("Lt" if isinstance(operator, ast.Gt) else "Le", [right, left])
    if type(operator) not in _OPERATORS:
        raise ValueError(f"unknown comparison {type(operator).__name__}")
    return _opaque(_OPERATORS[type(operator)], [left, right])


def _opaque(name: str, arguments: list[sympy.Basic]) -> sympy.Basic:
    """An operation that sympy must not evaluate: its meaning on sizes is torch's, not sympy's."""
    if name in _ORDERLESS:
        arguments = sorted(arguments, key=str)
    return sympy.Function(name)(*arguments)
