"""One whole-graph Dynamo trace, and what it says about itself."""

from __future__ import annotations

import dis
import logging
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.backends.registry  # first: torch.compile begins there, on other threads too
from torch._dynamo import bytecode_transformation as bytecode
from torch._dynamo import convert_frame
from torch._dynamo.exc import TorchRuntimeError, UncapturedHigherOrderOpError, Unsupported, UserError
from torch._dynamo.source import AttrSource
from torch._dynamo.utils import dynamo_timed, get_metrics_context
from torch._guards import Guard
from torch.fx import Graph, GraphModule
from torch.fx.experimental import _config as shape_config
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, ShapeEnv

from torch_piecewise.convention import TAIL_ARGUMENT
from torch_piecewise.torch_private.blocks import Blocks, modules_in, sharing
from torch_piecewise.torch_private.full_guards import FullGuards, full_guards
from torch_piecewise.torch_private.settings import no_compile_beside, patched

logger = logging.getLogger("torch_piecewise")

GraphBreak = (Unsupported, UncapturedHigherOrderOpError, UserError)
"""What Dynamo raises where it would have to break a graph that must be whole (2.11, 2.13)."""

ShapeError = ConstraintViolationError
"""What a trace raises where a dim marked as dynamic turns out to be fixed (2.11, 2.13)."""


FakeCallError = TorchRuntimeError
"""What a trace raises where an operation refuses its inputs, as it would in a run (2.11, 2.13)."""


@dataclass(frozen=True)
class InputGuard:
    """Something Dynamo read while tracing, and how it looked at it.

    Attributes:
        path: Python expression over ``L`` (the frame's locals) and ``G`` (its globals).
        kind: name of Dynamo's guard (``TENSOR_MATCH``, ``CONSTANT_MATCH``, ...).
        about: what else it is about: an attribute's name (``HASATTR``), the path that leads to the same
            tensor (``DUPLICATE_INPUT``); empty for the others.
    """

    path: str
    kind: str
    about: str = ""


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
        tail_builtins: names under which the tail expects the dict of builtins.
        traced: the traced function.
        traced_code: every code object that was inlined.
        written_attributes: names of the attributes that the tail writes.
        blocks_shared: calls of modules that were copied from the trace of one like them.
        blocks_apart: of classes with several modules, why a call was traced by itself, by class name.
        full_guards: all of Dynamo's guards; None where they were not asked for.
    """

    graph: GraphModule
    sources: tuple[str, ...]
    fakes: tuple[Any, ...]
    shape_env: ShapeEnv
    guards: tuple[InputGuard, ...]
    tail: types.CodeType
    tail_imports: Mapping[str, str]
    argument_names: tuple[str, ...]
    tail_builtins: tuple[str, ...]
    traced: types.FunctionType
    traced_code: tuple[types.CodeType, ...]
    written_attributes: frozenset[str]
    blocks_shared: int = 0
    blocks_apart: Mapping[str, str] = field(default_factory=dict)
    full_guards: FullGuards | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The files of all code that the trace ran through."""
        return tuple(code.co_filename for code in self.traced_code)


def capture_fullgraph(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    shape_settings: Mapping[str, Any],
    dynamo_settings: Mapping[str, Any],
    share_blocks: bool = True,
    with_full_guards: bool = False,
    stand_ins: Iterable[torch.Tensor] = (),
) -> RawCapture:
    """Trace ``function(*args, **kwargs)`` as one graph without running it; an empty one without operations.

    Uses ``torch._dynamo.convert_frame.fullgraph_capture`` (2.11, 2.13), the door that torch's own
    ``aot_compile`` and strict export use; https://github.com/pytorch/pytorch/issues/154703.

    Args:
        shape_settings: patches for ``torch.fx.experimental._config`` during the trace.
        dynamo_settings: patches for ``torch._dynamo.config`` during the trace.
        share_blocks: copy calls of alike modules; the result is the same. Not with full guards.
        with_full_guards: make Dynamo's own guards as well.
        stand_ins: tensors among the arguments that a call has others for, marked in other ways.

    Raises:
        GraphBreak: Dynamo cannot trace it whole.
        ShapeError: a full guard fixes a dim that was marked as dynamic.
    """
    traced, _self = convert_frame.get_traced_fn(function)
    with (
        # As in torch: Dynamo's counters and, in 2.11, its settings belong to the process (2.11, 2.13).
        no_compile_beside(convert_frame.compile_lock),
        get_metrics_context(),
        dynamo_timed("torch_piecewise.capture"),
        patched(shape_config, shape_settings),
        patched(torch._dynamo.config, dynamo_settings),
    ):
        # Full guards hold what Dynamo saw of each tensor, which a copy never looked at.
        output, blocks = _captured(function, args, kwargs, share_blocks and not with_full_guards)
        frame = output.graph_capture_output
        guards = full_guards(frame, traced.__code__, stand_ins) if with_full_guards else None
    backend_input = output.backend_input
    graph = backend_input.graph_module if backend_input is not None else _empty_graph()
    shape_env = frame.output_graph.shape_env
    assert shape_env is not None
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    tail = _tail_of(frame.bytecode, backend_input.backend_id if backend_input is not None else None)
    tail_names = _globals_of(tail)
    return RawCapture(
        graph=graph,
        sources=tuple(node._dynamo_source.name for node in placeholders),
        fakes=tuple(node.meta["example_value"] for node in placeholders),
        shape_env=shape_env,
        guards=tuple(_input_guard(guard) for guard in sorted(frame.output_graph.guards, key=Guard.sort_key)),
        tail=tail,
        tail_imports={k: v for k, v in frame.import_sources.items() if k in tail_names},
        argument_names=_argument_names(frame.bytecode),
        tail_builtins=tuple(name for name in tail_names if name.startswith("__builtins_dict__")),
        traced=traced,
        traced_code=tuple(frame.traced_code),
        written_attributes=_written_attributes(tail),
        blocks_shared=blocks.shared,
        blocks_apart=blocks.reasons,
        full_guards=guards,
    )


def _captured(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], share: bool
) -> tuple[Any, Blocks]:
    """One trace, by copying where that can be; plainly where copying failed or the trace did."""
    traced, owner = convert_frame.get_traced_fn(function)
    unread = f"L[{traced.__code__.co_varnames[0]!r}]" if owner is not None else None
    blocks = Blocks(modules_in(_holders(function, args, kwargs)) if share else (), unread)
    try:
        with sharing(blocks):
            return convert_frame.fullgraph_capture(function, args, kwargs), blocks
    except Exception as error:
        if not blocks.active:
            raise
        logger.debug("traced again, each block by itself: %s", error)
    return convert_frame.fullgraph_capture(function, args, kwargs), Blocks()


def _holders(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Everything that the modules a call reaches may hang on."""
    traced, owner = convert_frame.get_traced_fn(function)
    closed = [cell.cell_contents for cell in traced.__closure__ or ()]
    named = [traced.__globals__[name] for name in traced.__code__.co_names if name in traced.__globals__]
    return [owner, *closed, *named, *args, *kwargs.values()]


def _written_attributes(code: types.CodeType) -> frozenset[str]:
    """Attributes that ``code`` writes, by statement or by a call that names them."""
    steps = list(dis.get_instructions(code))
    stored = {str(step.argval) for step in steps if step.opname == "STORE_ATTR"}
    named = {step.argval for step in steps if step.opname == "LOAD_CONST" and isinstance(step.argval, str)}
    return frozenset(stored | named)


def _globals_of(code: types.CodeType) -> set[str]:
    """The globals that ``code`` really loads: ``co_names`` still lists those of the part cut off."""
    return {str(step.argval) for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}


def _argument_names(code: types.CodeType) -> tuple[str, ...]:
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    return code.co_varnames[:count]


def _input_guard(guard: Guard) -> InputGuard:
    kind = guard.inner_create_fn().__name__
    details = getattr(guard.create_fn, "keywords", None) or {}
    source = guard.originating_source
    if kind == "HASATTR" and "attr" not in details and isinstance(source, AttrSource):  # 2.11
        return InputGuard(source.base.name, kind, source.member)
    other = details.get("source_b")
    return InputGuard(guard.name, kind, other.name if other is not None else str(details.get("attr") or ""))


def _empty_graph() -> GraphModule:
    graph = Graph()
    graph.output(())
    return GraphModule(torch.nn.Module(), graph)


def _tail_of(code: types.CodeType, backend_id: str | None) -> types.CodeType:
    """What Dynamo's bytecode does after it called the compiled graph, as code of its own.

    The part before (loading inputs from their sources) is ours to generate: it is where a call's time
    goes. Uses ``torch._dynamo.bytecode_transformation`` (2.11, 2.13).

    Args:
        backend_id: the compiled graph's name in the bytecode; None where there is no graph to call.
    """

    def cut(instructions: list[Any], options: dict[str, Any]) -> None:
        if backend_id is not None:
            start, end = _graph_call(instructions, backend_id)
            instructions[start:end] = [bytecode.create_instruction("LOAD_FAST", argval=TAIL_ARGUMENT)]
        position = options["co_argcount"]
        names = list(options["co_varnames"])
        names.insert(position, TAIL_ARGUMENT)
        options["co_varnames"] = tuple(names)
        options["co_argcount"] = position + 1
        options["co_nlocals"] = len(names)

    return bytecode.transform_code_object(code, cut)[0]


def _graph_call(instructions: list[Any], backend_id: str) -> tuple[int, int]:
    """From where the compiled graph is loaded to where its outputs alone lie on the stack in its place."""
    start = next(
        index
        for index, step in enumerate(instructions)
        if step.opname == "LOAD_GLOBAL" and step.argval == backend_id
    )
    end, depth = start, 0
    while depth != 1 or end == start + 1:
        depth += dis.stack_effect(instructions[end].opcode, instructions[end].arg, jump=False)
        end += 1
    while instructions[end].opname == "DELETE_FAST":  # what Dynamo kept in variables for the call
        end += 1
    return start, end


def mark_dynamic(tensor: torch.Tensor, dim: int) -> None:
    """Mark one dim of ``tensor`` as dynamic for the next trace (``torch._dynamo.mark_dynamic``)."""
    torch._dynamo.mark_dynamic(tensor, dim)


def mark_maybe_dynamic(tensor: torch.Tensor, dim: int) -> None:
    """Mark one dim as dynamic for the next trace, which may still fix it (``maybe_mark_dynamic``)."""
    torch._dynamo.maybe_mark_dynamic(tensor, dim)


def mark_unbacked(tensor: torch.Tensor, dim: int) -> None:
    """Mark one dim of ``tensor`` as of unknown size for the next trace."""
    torch._dynamo.decorators.mark_unbacked(tensor, dim)


# Code of torch and of this library: of a refusal people want to know which line of theirs led to it.
NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


def graph_break_details(error: BaseException) -> tuple[str, str, str]:
    """Reason, hints and place of a graph break (``torch._dynamo.exc.Unsupported``)."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    hints = [x.partition(":")[2].strip() for x in lines if x.startswith("Hint:")]
    stack = list(getattr(error, "real_stack", None) or ())
    own = [frame for frame in stack if not frame.filename.startswith(NOT_THE_USERS)]
    last = (own or stack)[-1] if stack else None
    where = f"{last.filename}:{last.lineno} ({last.line})" if last is not None else ""
    reason = reason_of(text) or type(error).__name__
    return reason, " ".join(hints), where


def reason_of(text: str) -> str:
    """What Dynamo says first, and its explanation."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    explanation = next((x.partition(":")[2].strip() for x in lines if x.startswith("Explanation:")), "")
    return ": ".join(part for part in (*lines[:1], explanation) if part)
