"""Whether two traces say the same: what everything after the trace reads of one."""

from __future__ import annotations

import dis
import inspect
import re
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from torch_piecewise.input_guards import convention_of
from torch_piecewise.torch_private.block_views import spec
from torch_piecewise.torch_private.dynamo import RawCapture, capture_fullgraph
from torch_piecewise.torch_private.shapes import describe_input

NUMBERS = re.compile(r"builtins_dict___\d+|_\d+_c\d+")
"""What Dynamo numbers anew in each trace."""

SETTINGS: dict[str, Any] = {
    "automatic_dynamic_shapes": False,
    "automatic_dynamic_local_pgo": False,
    "assume_static_by_default": True,
    "specialize_float": True,
}


def trace(
    function: Callable[..., Any], *args: Any, share: bool, oblivious: bool = True, **kwargs: Any
) -> RawCapture:
    """Trace ``function`` with dim 0 of each tensor argument dynamic."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.dim() and value.size(0) > 1:
            torch._dynamo.mark_dynamic(value, 0)
    return capture_fullgraph(
        getattr(function, "forward", function),
        args,
        kwargs,
        shape_settings={"backed_size_oblivious": oblivious},
        dynamo_settings=SETTINGS,
        share_blocks=share,
    )


def both(function: Callable[..., Any], *args: Any, oblivious: bool = True, **kwargs: Any) -> RawCapture:
    """Trace with and without sharing, check that the traces are equal; the one with."""
    shared = trace(function, *args, share=True, oblivious=oblivious, **kwargs)
    plain = trace(function, *args, share=False, oblivious=oblivious, **kwargs)
    assert_same(shared, plain)
    assert checks(shared, function, args, kwargs) == checks(plain, function, args, kwargs)
    return shared


def checks(
    raw: RawCapture, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> set[tuple[str, str]]:
    """What is made of all that the trace read; Dynamo numbers builtins and some objects anew each time."""
    owner = getattr(getattr(function, "forward", function), "__self__", None)
    given = args if owner is None else (owner, *args)
    bound = inspect.signature(raw.traced).bind(*given, **kwargs)
    bound.apply_defaults()
    cells = zip(raw.traced.__code__.co_freevars, raw.traced.__closure__ or (), strict=True)
    frame = {**bound.arguments, **{name: cell.cell_contents for name, cell in cells}}
    convention = convention_of(
        raw,
        raw.argument_names[0] if owner is not None else None,
        frame,
        [describe_input(fake) for fake in raw.fakes],
    )
    values = {name: value for name, value in convention.values.items() if not callable(value)}
    return {
        (NUMBERS.sub("numbered", check.expression), NUMBERS.sub("numbered", check.text))
        for check in convention.checks
    } | {(name, repr(value)) for name, value in values.items()}


def assert_same(one: RawCapture, other: RawCapture) -> None:
    """Check every part of two traces of one call."""
    assert one.sources == other.sources
    assert list(map(spec, one.fakes)) == list(map(spec, other.fakes))
    for mine, theirs in zip(lines(one), lines(other), strict=True):
        assert mine == theirs
    assert memory(one) == memory(other)
    assert [str(g.expr) for g in one.shape_env.guards] == [str(g.expr) for g in other.shape_env.guards]
    assert {code.co_qualname for code in one.traced_code} == {code.co_qualname for code in other.traced_code}
    assert code_facts(one.tail) == code_facts(other.tail)
    assert one.written_attributes == other.written_attributes
    assert one.argument_names == other.argument_names


def lines(raw: RawCapture) -> list[tuple[Any, ...]]:
    """Each node with everything it carries."""
    return [line(node) for node in raw.graph.graph.nodes]


def line(node: Node) -> tuple[Any, ...]:
    stack = node.meta.get("nn_module_stack") or {}
    value = node.meta.get("example_value")
    return (
        node.name,
        node.op,
        node.target,
        str(map_arg(node.args, lambda one: one.name)),
        str(map_arg(dict(node.kwargs), lambda one: one.name)),
        list(stack.items()),
        node.meta.get("source_fn_stack"),
        node.meta.get("stack_trace"),
        sorted(key for key in node.meta if key not in ("grapharg", "steal_arg", "tensor_dict")),
        None if value is None else spec(value),
    )


def memory(raw: RawCapture) -> list[tuple[int, ...]]:
    """Which nodes' fake values lie in one memory."""
    numbers: dict[int, int] = {}
    found = []
    for node in raw.graph.graph.nodes:
        value = node.meta.get("example_value")
        parts = value if isinstance(value, tuple | list) else (value,)
        keys = [
            one.untyped_storage()._cdata
            for one in parts
            if isinstance(one, torch.Tensor) and one.layout is torch.strided
        ]
        found.append(tuple(numbers.setdefault(key, len(numbers)) for key in keys))
    return found


def code_facts(code: types.CodeType) -> list[tuple[str, str]]:
    """The steps of a code object; what its tables list beside those differs from trace to trace."""
    steps = [(one.opname, one.argval) for one in dis.get_instructions(code)]
    return [
        (name, str(code_facts(value)) if isinstance(value, types.CodeType) else NUMBERS.sub("", repr(value)))
        for name, value in steps
    ]
