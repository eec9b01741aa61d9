"""The only file that touches private torch names.

Each function names what it uses, the versions it was checked against (2.11 by its source, 2.13 by
running), and the issue or page where torch discusses a public way. Importing this module imports
``torch._dynamo``; the runtime of a baked bundle must not.
"""

from __future__ import annotations

import contextlib
import importlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch._dynamo import bytecode_transformation as bytecode
from torch._dynamo import convert_frame
from torch._dynamo.exc import UncapturedHigherOrderOpError, Unsupported, UserError
from torch._dynamo.utils import dynamo_timed, get_metrics_context
from torch._guards import CompileContext, TracingContext, compile_context, tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental import _config as shape_config
from torch.fx.experimental.symbolic_shapes import (
    ConstraintViolationError,
    DimDynamic,
    ShapeEnv,
    is_symbolic,
)
from torch.nn import Module

from torch_piecewise.piece import ConstantSpec, Dim, InputSpec, IntSpec, Piece, Symbol, TensorSpec
from torch_piecewise.ranges import UNBOUNDED

GraphBreak = (Unsupported, UncapturedHigherOrderOpError, UserError)
"""What Dynamo raises where it would have to break a graph that must be whole (2.11, 2.13)."""

ShapeError = ConstraintViolationError
"""What a trace raises where a dim marked as dynamic turns out to be fixed (2.11, 2.13)."""


# --------------------------------------------------------------------------------------------------
# Modules: the slot that ``nn.Module.compile()`` fills and ``nn.Module.__call__`` reads. It is left out
# of pickles and copies by torch itself, and not part of ``state_dict``. 2.11 and 2.13.


def compiled_call(module: Module) -> Callable[..., Any] | None:
    """What runs instead of ``module``'s own forward, if anything."""
    return module._compiled_call_impl


def set_compiled_call(module: Module, call: Callable[..., Any] | None) -> None:
    """Run ``call`` for ``module(...)``; None gives the module its own forward back."""
    module._compiled_call_impl = call


def traceable_call(module: Module) -> Callable[..., Any]:
    """The bound method to trace for ``module(...)``: ``forward``, or the hook-running call around it."""
    own_hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    own_call = type(module).__call__ is not Module.__call__
    if own_call or any(own_hooks):
        return module._call_impl
    return module.forward


def is_dynamo_compiling() -> bool:
    """Whether this code runs under a Dynamo trace."""
    return torch.compiler.is_dynamo_compiling()


# --------------------------------------------------------------------------------------------------
# Capture.


@dataclass(frozen=True)
class InputGuard:
    """Something Dynamo read while tracing, and how it looked at it.

    Attributes:
        path: Python expression over ``L`` (the frame's locals) and ``G`` (its globals).
        kind: name of Dynamo's guard (``TENSOR_MATCH``, ``CONSTANT_MATCH``, ...).
    """

    path: str
    kind: str


@dataclass(frozen=True)
class RawCapture:
    """One whole-graph Dynamo trace.

    Attributes:
        graph: the traced graph; parameters and buffers are inputs.
        sources: for each graph input, the expression that finds it, over ``L`` and ``G``.
        fakes: for each graph input, its fake tensor, SymInt or plain value.
        shape_env: symbols, their ranges and the guards on them.
        guards: everything the trace read.
        tail: code that turns the graph's outputs into the call's result and replays side effects;
            takes the frame's arguments with one more, ``graph_outputs``, after the positional ones.
        tail_imports: alias -> module name, globals the tail needs beside the traced function's own.
        argument_names: the traced code's parameters, in ``co_varnames`` order.
        positional_count: how many of them are positional.
        closure: cells of the traced function.
        globals: globals of the traced function.
        extra_globals: globals that Dynamo added and the tail refers to.
        traced_code: every code object that was inlined.
    """

    graph: GraphModule
    sources: tuple[str, ...]
    fakes: tuple[Any, ...]
    shape_env: ShapeEnv
    guards: tuple[InputGuard, ...]
    tail: types.CodeType
    tail_imports: Mapping[str, str]
    argument_names: tuple[str, ...]
    closure: tuple[types.CellType, ...]
    globals: dict[str, Any]
    extra_globals: Mapping[str, Any]
    traced_code: tuple[types.CodeType, ...]

    def tail_function(self) -> types.FunctionType:
        """The tail as a function over live globals."""
        modules = {alias: importlib.import_module(name) for alias, name in self.tail_imports.items()}
        scope = {**self.globals, **modules, **self.extra_globals}
        return types.FunctionType(self.tail, scope, closure=self.closure or None)


class NoGraph(Exception):  # noqa: N818 - a signal between two files, not an error users see
    """The traced function has no tensor operation at all."""


TAIL_ARGUMENT = "__graph_outputs"


def capture_fullgraph(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    shape_settings: Mapping[str, Any],
    dynamo_settings: Mapping[str, Any],
) -> RawCapture:
    """Trace ``function(*args, **kwargs)`` as one graph without running it.

    Uses ``torch._dynamo.convert_frame.fullgraph_capture`` (2.11, 2.13), the door that torch's own
    ``aot_compile`` and strict export use; https://github.com/pytorch/pytorch/issues/154703.

    Args:
        shape_settings: patches for ``torch.fx.experimental._config`` during the trace.
        dynamo_settings: patches for ``torch._dynamo.config`` during the trace.

    Raises:
        GraphBreak: Dynamo cannot trace it whole.
        NoGraph: there is nothing to compile.
    """
    with (
        get_metrics_context(),
        dynamo_timed("torch_piecewise.capture"),
        shape_config.patch(dict(shape_settings)),
        torch._dynamo.config.patch(dict(dynamo_settings)),
    ):
        output = convert_frame.fullgraph_capture(function, args, kwargs)
    backend_input = output.backend_input
    if backend_input is None:
        raise NoGraph
    frame = output.graph_capture_output
    graph: GraphModule = backend_input.graph_module
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    tail = _tail_of(frame.bytecode, backend_input.backend_id)
    traced, _self = convert_frame.get_traced_fn(function)
    tail_names = set(tail.co_names)
    return RawCapture(
        graph=graph,
        sources=tuple(node._dynamo_source.name for node in placeholders),
        fakes=tuple(node.meta["example_value"] for node in placeholders),
        shape_env=backend_input.fake_mode.shape_env,
        guards=tuple(
            InputGuard(guard.name, guard.inner_create_fn().__name__)
            for guard in sorted(frame.output_graph.guards)
        ),
        tail=tail,
        tail_imports={k: v for k, v in frame.import_sources.items() if k in tail_names},
        argument_names=_argument_names(frame.bytecode),
        closure=tuple(frame.closure or ()),
        globals=traced.__globals__,
        extra_globals={k: v for k, v in frame.f_globals.items() if k in tail_names},
        traced_code=tuple(frame.traced_code),
    )


def _argument_names(code: types.CodeType) -> tuple[str, ...]:
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    return code.co_varnames[:count]


def _tail_of(code: types.CodeType, backend_id: str) -> types.CodeType:
    """What Dynamo's bytecode does after it called the compiled graph, as code of its own.

    The part before (loading inputs from their sources) is ours to generate: it is where a call's time
    goes. Uses ``torch._dynamo.bytecode_transformation`` (2.11, 2.13).
    """

    def cut(instructions: list[Any], options: dict[str, Any]) -> None:
        start = next(
            i
            for i, step in enumerate(instructions)
            if step.opname == "LOAD_GLOBAL" and step.argval == backend_id
        )
        end = next(
            i
            for i in range(start, len(instructions))
            if instructions[i].opname == "STORE_FAST" and str(instructions[i].argval).startswith("graph_out")
        )
        instructions[start:end] = [bytecode.create_instruction("LOAD_FAST", argval=TAIL_ARGUMENT)]
        position = options["co_argcount"]
        names = list(options["co_varnames"])
        names.insert(position, TAIL_ARGUMENT)
        options["co_varnames"] = tuple(names)
        options["co_argcount"] = position + 1
        options["co_nlocals"] = len(names)

    return bytecode.transform_code_object(code, cut)[0]


def mark_dynamic(tensor: torch.Tensor, dim: int) -> None:
    """Mark one dim of ``tensor`` as dynamic for the next trace (``torch._dynamo.mark_dynamic``)."""
    torch._dynamo.mark_dynamic(tensor, dim)


def mark_unbacked(tensor: torch.Tensor, dim: int) -> None:
    """Mark one dim of ``tensor`` as of unknown size for the next trace."""
    torch._dynamo.decorators.mark_unbacked(tensor, dim)


# --------------------------------------------------------------------------------------------------
# Symbolic shapes: reading a trace's symbols, and making fake inputs of one's own from descriptions.
# ``ShapeEnv``, ``create_symbol`` and ``FakeTensorMode`` are private in all versions (2.11, 2.13).


def dim_text(value: Any) -> Dim:
    """A size as a number, or as the text of its expression."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    expression = value.node.shape_env.simplify(value.node.expr)
    return int(expression) if expression.is_number else str(expression)


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
    if not plain or value.layout is not torch.strided or value.is_quantized or value.is_complex():
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
        for symbol in sorted(sympy.sympify(text, locals=known).free_symbols, key=str):
            found.setdefault(str(symbol), _symbol(symbol, shape_env))
    return tuple(found.values())


def _symbol(symbol: sympy.Symbol, shape_env: ShapeEnv) -> Symbol:
    bounds = shape_env.var_to_range[symbol]
    hint = _hint(shape_env, symbol)
    upper = bounds.upper
    return Symbol(
        name=str(symbol),
        lower=max(int(bounds.lower), 0),
        upper=int(upper) if upper.is_Integer and int(upper) < UNBOUNDED else UNBOUNDED,
        hint=max(int(bounds.lower), 0) if hint is None else hint,
        backed=hint is not None,
    )


def _hint(shape_env: ShapeEnv, symbol: sympy.Symbol) -> int | None:
    # ``var_to_val`` became ``backed_var_to_val`` between 2.11 and 2.13.
    values = getattr(shape_env, "backed_var_to_val", None)
    if values is None:
        values = shape_env.var_to_val
    return int(values[symbol]) if symbol in values else None


def shape_relations(shape_env: ShapeEnv) -> tuple[tuple[str, str], ...]:
    """The trace's shape guards as ``(expression text, user source line)``, ranges included."""
    relations = [
        (str(guard.expr), _location(guard))
        for guard in shape_env.guards
        if not _is_framework_zero_one(guard)
    ]
    for symbol, bounds in shape_env.var_to_range.items():
        if symbol in shape_env.replacements:
            continue
        if bounds.lower.is_Integer and int(bounds.lower) > 0:
            relations.append((f"{symbol} >= {int(bounds.lower)}", ""))
        if bounds.upper.is_Integer and int(bounds.upper) < UNBOUNDED:
            relations.append((f"{symbol} <= {int(bounds.upper)}", ""))
    for symbol, value in shape_env.replacements.items():
        relations.append((f"Eq({symbol}, {value})", ""))
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


def _location(guard: Any) -> str:
    """``file:line in function`` of the user's code behind a shape guard, or empty."""
    return (guard.sloc.maybe_user_loc or "").strip("# ")


def evaluate_relation(text: str, sizes: Mapping[str, int]) -> bool:
    """Whether a relation from :func:`shape_relations` holds for these sizes."""
    return bool(_parse(text, {}).subs({sympy.Symbol(k): v for k, v in sizes.items()}))


def relation_symbols(text: str) -> frozenset[str]:
    """The symbols that a relation mentions."""
    return frozenset(str(symbol) for symbol in _parse(text, {}).free_symbols)


def _parse(text: str, symbols: Mapping[str, sympy.Symbol]) -> sympy.Basic:
    functions = importlib.import_module("torch.utils._sympy.functions")
    names = {name: getattr(functions, name) for name in functions.__all__}
    names |= {"Eq": sympy.Eq, "Ne": sympy.Ne, "Mod": functions.Mod}
    return sympy.sympify(text, locals={**names, **symbols})


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
        with shape_config.patch(backed_size_oblivious=True):
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
            size = self.shape_env.create_unbacked_symint()
            torch._check(size >= lower)
            if upper != UNBOUNDED:
                torch._check(size <= upper)
            return size.node.expr
        value = min(max(hint if symbol.name == dispatch else symbol.hint, lower), upper)
        created = self.shape_env.create_symbol(
            value,
            source=torch._dynamo.source.ConstantSource(f"__{symbol.name}"),
            dynamic_dim=DimDynamic.DYNAMIC,
            do_not_specialize_zero_one=True,
        )
        node = self.shape_env.create_symintnode(created, hint=value)
        if isinstance(node, torch.SymInt):
            torch._check(node >= lower)
            if upper != UNBOUNDED:
                torch._check(node <= upper)
        return created

    def _assume(self, text: str) -> None:
        relation = self._expression(text)
        if relation not in (sympy.true, sympy.false):
            self.shape_env.evaluate_expr(relation)

    def _expression(self, text: str) -> sympy.Basic:
        placeholders = {name: sympy.Symbol(f"_{name}", integer=True) for name in self._symbols}
        parsed = _parse(text, placeholders)
        return parsed.xreplace({placeholders[name]: value for name, value in self._symbols.items()})

    def _int(self, dim: Dim) -> Any:
        if isinstance(dim, int):
            return dim
        expression = self._expression(dim)
        if expression.is_number:
            return int(expression)
        hints = {symbol: _hint(self.shape_env, symbol) for symbol in expression.free_symbols}
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
            parsed = _parse(text, {str(value): value for value in back})
            texts.append(str(parsed.xreplace(back)))
        return tuple(texts)


@contextlib.contextmanager
def compile_under(fakes: FakeInputs) -> Iterator[None]:
    """Make ``fakes``' mode the one that Inductor and AOTAutograd use inside the block."""
    context = TracingContext(fakes.mode)
    with (
        compile_context(CompileContext(convert_frame.get_compile_id({}))),
        tracing(context),
        shape_config.patch(backed_size_oblivious=True),
    ):
        yield


# --------------------------------------------------------------------------------------------------
# FX details.


def example_value(node: Node) -> Any:
    """The fake value of a node: Dynamo keeps it as ``example_value``, AOTAutograd as ``val``."""
    meta = node.meta
    return meta["example_value"] if "example_value" in meta else meta.get("val")


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


# --------------------------------------------------------------------------------------------------
# Inductor. Imported where it is used: it costs a second that a start with the eager compiler or from a
# bundle does not owe.


def inductor_standalone(
    graph: GraphModule, fakes: FakeInputs, *, patches: Mapping[str, Any], cache_tag: str
) -> bytes:
    """Compile with ``torch._inductor.standalone_compile(aot=True)`` (2.11, 2.13) and serialise.

    Args:
        cache_tag: set into torch's own cache keys: its graph cache does not hold the symbols' bounds, so
            that ranges of one piece would meet there (measured on 2.13).
    """
    import torch._inductor

    patched = {k: v for k, v in patches.items()}
    with compile_under(fakes), torch.compiler.config.patch(cache_key_tag=cache_tag):
        artifact = torch._inductor.standalone_compile(
            graph,
            list(fakes.values),
            dynamic_shapes="from_tracing_context",
            aot=True,
            options={"config_patches": patched},
        )
    return bytes(artifact.serialize())


def load_inductor_standalone(payload: bytes) -> Callable[..., tuple[Any, ...]]:
    """The callable of :func:`inductor_standalone`'s bytes.

    ``AOTCompiledArtifact.deserialize`` unpickles: callers verify the bytes' digest first.
    """
    from torch._inductor.standalone_compile import AOTCompiledArtifact

    loaded = AOTCompiledArtifact.deserialize(payload)
    return loaded.inner_fn.compiled_fn


def inductor_in_memory(
    graph: GraphModule, fakes: FakeInputs, *, patches: Mapping[str, Any], cache_tag: str
) -> Callable[..., tuple[Any, ...]]:
    """Compile with ``torch._inductor.compile_fx.compile_fx`` (2.11, 2.13); supports gradients."""
    import copy

    from torch._inductor.compile_fx import compile_fx

    with compile_under(fakes), torch.compiler.config.patch(cache_key_tag=cache_tag):
        return compile_fx(copy.deepcopy(graph), list(fakes.values), config_patches=dict(patches))


def storage_key(value: torch.Tensor) -> int | None:
    """A number that two fake tensors share exactly when they share memory; None where there is none."""
    if value.layout is not torch.strided:
        return None
    return int(value.untyped_storage()._cdata)


def dispatch_modes_active() -> bool:
    """Whether a ``TorchDispatchMode`` or functorch transform would want to see operator calls."""
    return torch._C._len_torch_dispatch_stack() > 0


def source_line(error: BaseException, graph: GraphModule) -> tuple[str, str]:
    """Which op of ``graph`` a compiler's error is about, and the user's line it came from.

    Inductor's lowering errors carry the op (``LoweringException``, 2.11 and 2.13); where nothing tells,
    the piece's last operation stands for it.
    """
    operations = [n for n in graph.graph.nodes if n.op in ("call_function", "call_method", "call_module")]
    if not operations:
        return "none", "an unknown line"
    text = str(error)
    named = [n for n in operations if _target_label(n) in text]
    node = named[0] if named else operations[-1]
    return _target_label(node), user_line(node)


def _target_label(node: Node) -> str:
    target = node.target
    return str(target) if isinstance(target, str) else getattr(target, "__name__", str(target))


def user_line(node: Node) -> str:
    """``file:line (code)`` of the user's line that made ``node``."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    files = [index for index, line in enumerate(lines) if line.startswith("File ")]
    if not files:
        return "an unknown line"
    last = files[-1]
    parts = lines[last].split('"')
    number = lines[last].split("line ")[-1].split(",")[0]
    code = f" ({lines[last + 1]})" if last + 1 < len(lines) else ""
    return f"{parts[1]}:{number}{code}"


# --------------------------------------------------------------------------------------------------
# Reading a trace.


def symbol_sources(
    shape_env: ShapeEnv, sources: Sequence[str], fakes: Sequence[Any]
) -> dict[str, str]:
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


def where_fixed(shape_env: ShapeEnv, number: int) -> str:
    """The user's line at which a size became ``number``, if the trace knows."""
    for guard in shape_env.guards:
        equal = isinstance(guard.expr, sympy.Eq) and number in (guard.expr.lhs, guard.expr.rhs)
        if equal and (place := _location(guard)):
            return place
    return ""


def graph_break_details(error: BaseException) -> tuple[str, str, str]:
    """Reason, hints and place of a graph break (``torch._dynamo.exc.Unsupported``)."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    explanation = next((x.partition(":")[2].strip() for x in lines if x.startswith("Explanation:")), "")
    hints = [x.partition(":")[2].strip() for x in lines if x.startswith("Hint:")]
    stack = list(getattr(error, "real_stack", None) or ())
    where = f"{stack[-1].filename}:{stack[-1].lineno} ({stack[-1].line})" if stack else ""
    reason = ": ".join(part for part in (lines[0] if lines else type(error).__name__, explanation) if part)
    return reason, " ".join(hints), where


def ensure_example_values(graph: GraphModule, example_inputs: Sequence[Any]) -> None:
    """Give every node an example value where the graph has none (a plain FX trace)."""
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    if all("example_value" in node.meta or "val" in node.meta for node in placeholders):
        return
    fakes = [value for value in example_inputs if isinstance(value, FakeTensor)]
    mode = fakes[0].fake_mode if fakes else FakeTensorMode(shape_env=ShapeEnv())
    FakeTensorProp(graph, mode).propagate(*example_inputs)


def placeholder_facts(graph: GraphModule) -> tuple[list[str], list[Any], ShapeEnv | None]:
    """Source text, fake value of each placeholder, and the ``ShapeEnv`` of their symbols if any."""
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    fakes = [example_value(node) for node in placeholders]
    sources = [
        node._dynamo_source.name if getattr(node, "_dynamo_source", None) is not None else node.name
        for node in placeholders
    ]
    for fake in fakes:
        parts = (*fake.shape, *fake.stride()) if _is_strided(fake) else (fake,)
        for part in parts:
            if isinstance(part, torch.SymInt):
                return sources, fakes, part.node.shape_env
    return sources, fakes, None


def _is_strided(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def flat_symbol_readers(fakes: Sequence[Any]) -> dict[str, str]:
    """For each symbol, how to read it from the graph's inputs ``args``."""
    readers: dict[str, str] = {}
    for index, fake in enumerate(fakes):
        if isinstance(fake, torch.SymInt):
            readers[str(dim_text(fake))] = f"args[{index}]"
    for index, fake in enumerate(fakes):
        if isinstance(fake, torch.Tensor):
            for dim, size in enumerate(fake.shape):
                readers.setdefault(str(dim_text(size)), f"args[{index}].size({dim})")
    return readers
