"""Symbolic shapes: reading a trace's symbols and what it relied on.

``ShapeEnv`` and the nodes behind ``SymInt`` are private in all versions (2.11, 2.13).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv, is_symbolic
from torch.utils._sympy import functions as sympy_functions
from torch.utils._traceback import shorten_filename

from torch_piecewise.piece import ConstantSpec, Dim, InputSpec, IntSpec, Symbol, TensorSpec
from torch_piecewise.ranges import UNBOUNDED, Range

__all__ = ["ShapeEnv"]


def dim_text(value: Any) -> Dim:
    """A size as a number, or as the text of its expression."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    expression = value.node.shape_env.simplify(value.node.expr)
    return int(expression) if expression.is_number else str(expression)


def expression_text(value: Any) -> str:
    """A number, symbolic or not, as Python over symbol names and the functions of ``relations``."""
    if not isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return repr(value)
    node = value.node
    return str(node.shape_env.simplify(node.expr))


def readable_symbols(names: Sequence[str], values: Sequence[Any]) -> dict[str, str]:
    """For each symbol that a call's arguments tell, Python that reads it.

    Args:
        names: of the arguments, as that Python calls them.
        values: their fake values.
    """
    found: dict[str, str] = {}
    for name, value in zip(names, values, strict=True):
        if isinstance(value, torch.SymInt):
            found.setdefault(expression_text(value), name)
    for name, value in zip(names, values, strict=True):
        if isinstance(value, torch.Tensor):
            for dim, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
                found.setdefault(expression_text(size), f"{name}.size({dim})")
                found.setdefault(expression_text(stride), f"{name}.stride({dim})")
    return {text: reader for text, reader in found.items() if text.isidentifier()}


def extent_text(tensor: torch.Tensor) -> Dim:
    """How many elements lie between a tensor's first and last one, both counted, and the storage's start."""
    if tensor.layout is not torch.strided:
        return dim_text(tensor.numel())
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return dim_text(tensor.storage_offset() + last + 1)


def is_symbolic_int(value: Any) -> bool:
    """Whether ``value`` is a ``SymInt`` that is not known to be one number."""
    return isinstance(value, torch.SymInt) and is_symbolic(value) and isinstance(dim_text(value), str)


def describe_input(value: Any) -> InputSpec | None:
    """Describe one graph input by values; None where it cannot be (sparse, subclass, script object)."""
    if isinstance(value, torch.SymInt) or (isinstance(value, int) and not isinstance(value, bool)):
        return IntSpec(dim_text(value))
    if isinstance(value, float | bool | str | None):
        return ConstantSpec(value)
    plain = isinstance(value, torch.Tensor) and type(value) in (FakeTensor, torch.Tensor, torch.nn.Parameter)
    if not plain or value.layout is not torch.strided or value.is_quantized:
        return None
    return TensorSpec(
        dtype=value.dtype,
        device=value.device,
        size=tuple(dim_text(size) for size in value.shape),
        stride=tuple(dim_text(stride) for stride in value.stride()),
        storage_offset=dim_text(value.storage_offset()),
        requires_grad=value.requires_grad,
    )


def symbols_in(texts: Sequence[Dim], shape_env: ShapeEnv) -> tuple[Symbol, ...]:
    """The symbols that ``texts`` mention, in order of first mention."""
    known = {str(symbol): symbol for symbol in shape_env.var_to_range}
    found: dict[str, Symbol] = {}
    for text in texts:
        if isinstance(text, int):
            continue
        mentioned = [known[text]] if text in known else sympy.sympify(text, locals=known).free_symbols
        for symbol in sorted(mentioned, key=str):
            found.setdefault(str(symbol), _symbol(symbol, shape_env))
    return tuple(found.values())


def _symbol(symbol: sympy.Symbol, shape_env: ShapeEnv) -> Symbol:
    bounds = shape_env.var_to_range[symbol]
    hint = hint_of(shape_env, symbol)
    upper = bounds.upper
    # A number read from data may be negative; a size is not.
    lower = int(bounds.lower) if bounds.lower.is_Integer else -UNBOUNDED
    lower = max(lower, -UNBOUNDED if hint is None else 0)
    return Symbol(
        name=str(symbol),
        lower=lower,
        upper=int(upper) if upper.is_Integer and int(upper) < UNBOUNDED else UNBOUNDED,
        hint=max(lower, 0) if hint is None else hint,
        backed=hint is not None,
    )


def size_bounds(name: str, shape_env: ShapeEnv | None) -> Range:
    """What the trace knows of the symbol ``name``, as a size; every size where it knows no such symbol."""
    if shape_env is None or all(str(symbol) != name for symbol in shape_env.var_to_range):
        return Range(0, UNBOUNDED)
    (known,) = symbols_in((name,), shape_env)
    return Range(max(known.lower, 0), max(known.upper, known.lower, 0))


def hint_of(shape_env: ShapeEnv, symbol: sympy.Symbol) -> int | None:
    """The size that ``symbol`` had in the trace; None for one that depends on data."""
    # ``var_to_val`` became ``backed_var_to_val`` between 2.11 and 2.13.
    values = getattr(shape_env, "backed_var_to_val", None)
    if values is None:
        values = shape_env.var_to_val
    return int(values[symbol]) if symbol in values else None


def shape_relations(shape_env: ShapeEnv, files: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
    """The trace's shape guards as ``(expression text, user's line)``, ranges included.

    Args:
        files: of the code that was traced; tells whole paths.
    """
    relations = [
        (str(guard.expr), _place(guard.sloc, files))
        for guard in shape_env.guards
        if not _is_framework_zero_one(guard)
    ]
    for symbol, bounds in shape_env.var_to_range.items():
        if symbol in shape_env.replacements:
            continue
        asked = shape_env.var_to_range_sloc.get(symbol)
        if bounds.lower.is_Integer and int(bounds.lower) > 0:
            # Every dynamic size begins as 2 or more; what line made its symbol did not ask for that.
            place = _place(asked and asked.lower, files) if int(bounds.lower) > 2 else ""
            relations.append((f"{symbol} >= {int(bounds.lower)}", place))
        if bounds.upper.is_Integer and int(bounds.upper) < UNBOUNDED:
            relations.append((f"{symbol} <= {int(bounds.upper)}", _place(asked and asked.upper, files)))
    for symbol, value in shape_env.replacements.items():
        relations.append((f"Eq({symbol}, {value})", _place(shape_env.replacements_slocs.get(symbol), files)))
    return tuple(dict.fromkeys(relations))


def _is_framework_zero_one(guard: Any) -> bool:
    """Whether torch itself, not the model, asked if a size is 0 or 1 while it computed a fake result.

    Such a question decides the strides of an intermediate result's dims of that size at most; the operation
    itself runs later with the true size.
    """
    expression = guard.expr
    asks = isinstance(expression, sympy.Ne) and {sympy.S.Zero, sympy.S.One} & {expression.lhs, expression.rhs}
    frame = guard.sloc.framework_loc
    place = getattr(frame, "filename", frame) or ""
    return bool(asks) and bool(place) and "_dynamo" not in place


def _place(asked: Any, files: Collection[str]) -> str:
    """``file:line (code)`` of the user's code behind a guard's ``SLoc``, or empty.

    torch cuts from a path what it shares with torch's own folder and one letter more, so that ``/tmp/m.py``
    becomes ``mp/m.py`` (torch/utils/_traceback.py, 2.11 to 2.13); among ``files`` is the whole one.
    """
    code, _, place = (getattr(asked, "maybe_user_loc", None) or "").rpartition("  # ")
    short, _, rest = place.rpartition(":")
    if not short:
        return ""
    path = next((file for file in files if _shortened(file) == short), short)
    line = rest.partition(" in ")[0]
    return f"{path}:{line} ({code})" if code.strip() else f"{path}:{line}"


def _shortened(file: str) -> str:
    return str(shorten_filename(file))  # type: ignore[no-untyped-call]  # torch leaves it untyped


def parse(text: str, symbols: Mapping[str, sympy.Symbol]) -> sympy.Basic:
    """The expression that ``text`` spells, with these symbols for these names."""
    names = {name: getattr(sympy_functions, name) for name in sympy_functions.__all__}
    names |= {"Eq": sympy.Eq, "Ne": sympy.Ne, "Mod": sympy_functions.Mod}
    return sympy.sympify(text, locals={**names, **symbols})


def symbol_names(value: Any) -> frozenset[str]:
    """Names of the free symbols in a fake tensor's sizes, strides and offset, or in a ``SymInt``."""
    if isinstance(value, torch.Tensor):
        parts = [*value.shape]
        if value.layout is torch.strided:
            parts += [*value.stride(), value.storage_offset()]
    else:
        parts = [value]
    names: set[str] = set()
    for part in parts:
        if isinstance(part, torch.SymInt):
            expression = part.node.shape_env.simplify(part.node.expr)
            names |= {str(symbol) for symbol in expression.free_symbols}
    return frozenset(names)


def size_sources(shape_env: ShapeEnv) -> frozenset[str]:
    """Every expression over ``L`` that the trace read a symbol from; other sizes were fixed numbers."""
    return frozenset(source.name for sources in shape_env.var_to_sources.values() for source in sources)


def symbol_sources(shape_env: ShapeEnv, sources: Sequence[str], fakes: Sequence[Any]) -> dict[str, str]:
    """For each symbol, an expression over ``L`` that reads its value from a call's arguments."""
    # A symbol's own source first: sizes that turned out equal show one symbol in the fake tensors.
    found = {str(symbol): known[0].name for symbol, known in shape_env.var_to_sources.items() if known}
    for source, fake in zip(sources, fakes, strict=True):
        if not isinstance(fake, torch.Tensor):
            continue
        for dim, size in enumerate(fake.shape):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                found.setdefault(str(size.node.expr), f"{source}.size()[{dim}]")
    for source, fake in zip(sources, fakes, strict=True):
        if isinstance(fake, torch.SymInt) and fake.node.expr.is_Symbol:
            found.setdefault(str(fake.node.expr), source)
    return found


def assume_equal(shape_env: ShapeEnv, first: Any, second: Any) -> None:
    """Let two sizes of a trace be one from here on."""
    if isinstance(first, torch.SymInt) and isinstance(second, torch.SymInt):
        relation = sympy.Eq(shape_env.simplify(first.node.expr), shape_env.simplify(second.node.expr))
        if relation not in (sympy.true, sympy.false):
            shape_env.evaluate_expr(relation)


def where_fixed(shape_env: ShapeEnv, number: int, files: Collection[str] = ()) -> str:
    """The user's line at which a size became ``number``, if the trace knows.

    Args:
        files: of the code that was traced; tells whole paths.
    """
    for guard in shape_env.guards:
        equal = isinstance(guard.expr, sympy.Eq) and number in (guard.expr.lhs, guard.expr.rhs)
        if equal and (place := _place(guard.sloc, files)):
            return place
    for symbol, value in shape_env.replacements.items():
        if value == number and (place := _place(shape_env.replacements_slocs.get(symbol), files)):
            return place
    return ""
