"""Fake inputs of one's own, made from descriptions, in a ``ShapeEnv`` of their own.

``ShapeEnv.create_symbol`` and ``FakeTensorMode`` are private in all versions (2.11, 2.13).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch._dynamo import convert_frame
from torch._dynamo.source import ConstantSource
from torch._guards import CompileContext, TracingContext, compile_context, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental import _config as shape_config
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from torch_piecewise.piece import ConstantSpec, Dim, InputSpec, IntSpec, Piece, Symbol
from torch_piecewise.ranges import UNBOUNDED
from torch_piecewise.torch_private.settings import patched
from torch_piecewise.torch_private.shapes import hint_of, parse, shape_relations

_check: Any = torch._check  # untyped in torch


class FakeInputs:
    """Fresh fake inputs of one piece for one range, in a ``ShapeEnv`` of their own.

    Args:
        piece: whose inputs to make.
        bounds: closed bounds of the dispatch symbol; one single size makes it a plain number.
        hint: the size of the dispatch symbol to tune for, within ``bounds``.

    Attributes:
        values: one fake tensor, ``SymInt`` or constant per placeholder.
        mode: their ``FakeTensorMode``.
        shape_env: its ``ShapeEnv``.
    """

    def __init__(self, piece: Piece, bounds: tuple[int, int], hint: int) -> None:
        with patched(shape_config, {"backed_size_oblivious": True}):
            self.shape_env = ShapeEnv()
            self.mode = FakeTensorMode(shape_env=self.shape_env)
            self._symbols: dict[str, sympy.Expr] = {}
            for symbol in piece.symbols:
                self._symbols[symbol.name] = self._declare(symbol, piece.dispatch, bounds, hint)
            for text in piece.relations:
                self._assume(text)
            self.values = tuple(self._make(spec) for spec in piece.inputs)

    def _declare(
        self, symbol: Symbol, dispatch: str | None, bounds: tuple[int, int], hint: int
    ) -> sympy.Expr:
        lower, upper = symbol.lower, symbol.upper
        if symbol.name == dispatch:
            lower, upper = max(lower, bounds[0]), min(upper, bounds[1])
            if lower == upper:
                return sympy.Integer(lower)
        if not symbol.backed:
            # An input's symbol, and not the result of an operation that has yet to claim it.
            with self.shape_env.ignore_fresh_unbacked_symbols():
                size = self.shape_env.create_unbacked_symint()
            if lower != -UNBOUNDED:
                _check(size >= lower)
            if upper != UNBOUNDED:
                _check(size <= upper)
            return size.node.expr
        value = min(max(hint if symbol.name == dispatch else symbol.hint, lower), upper)
        created = self.shape_env.create_symbol(
            value,
            source=ConstantSource(f"__{symbol.name}"),
            dynamic_dim=DimDynamic.DYNAMIC,
            do_not_specialize_zero_one=True,
        )
        node = self.shape_env.create_symintnode(created, hint=value)
        if isinstance(node, torch.SymInt):
            _check(node >= lower)
            if upper != UNBOUNDED:
                _check(node <= upper)
        return created

    def _assume(self, text: str) -> None:
        relation = self._expression(text)
        if isinstance(relation, sympy.Ne) and None in self._hints(relation):
            return  # a size without a value cannot be asked, and no compiler needs to know what it is not
        if relation not in (sympy.true, sympy.false):
            self.shape_env.evaluate_expr(relation)

    def _hints(self, expression: sympy.Basic) -> list[int | None]:
        return [hint_of(self.shape_env, symbol) for symbol in expression.free_symbols]

    def _expression(self, text: str) -> sympy.Basic:
        placeholders = {name: sympy.Symbol(f"_{name}", integer=True) for name in self._symbols}
        parsed = parse(text, placeholders)
        return parsed.xreplace({placeholders[name]: value for name, value in self._symbols.items()})

    def _int(self, dim: Dim) -> Any:
        if isinstance(dim, int):
            return dim
        expression = self._expression(dim)
        if expression.is_number:
            return int(expression)
        hints = {symbol: hint_of(self.shape_env, symbol) for symbol in expression.free_symbols}
        known = None not in hints.values()
        return self.shape_env.create_symintnode(
            expression, hint=int(expression.subs(hints)) if known else None
        )

    def _make(self, spec: InputSpec) -> Any:
        if isinstance(spec, IntSpec):
            return self._int(spec.value)
        if isinstance(spec, ConstantSpec):
            return spec.value
        sizes = [self._int(dim) for dim in spec.size]
        strides = [self._int(dim) for dim in spec.stride]
        with self.mode:
            base = torch.empty_strided(
                sizes, strides, dtype=spec.dtype, device=spec.device, requires_grad=spec.requires_grad
            )
            if spec.storage_offset != 0:
                base = base.as_strided(sizes, strides, self._int(spec.storage_offset))
        return base

    def new_relations(self) -> tuple[str, ...]:
        """What a compile assumed about the symbols beyond what it was told, as expression texts.

        In the piece's own symbol names, so that they can be checked against real sizes.
        """
        back = {value: sympy.Symbol(name) for name, value in self._symbols.items() if value.is_Symbol}
        texts = []
        for text, _where in shape_relations(self.shape_env):
            parsed = parse(text, {str(value): value for value in back})
            texts.append(str(parsed.xreplace(back)))
        return tuple(texts)


@contextlib.contextmanager
def compile_under(fakes: FakeInputs) -> Iterator[None]:
    """Make ``fakes``' mode the one that Inductor and AOTAutograd use inside the block."""
    context = TracingContext(fakes.mode)
    with (
        compile_context(CompileContext(convert_frame.get_compile_id({}))),
        tracing(context),
        patched(shape_config, {"backed_size_oblivious": True}),
    ):
        yield
