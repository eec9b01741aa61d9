"""What the operation of a node is called: by a graph of torch functions, of ATen operations, of both."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from torch_piecewise.cut_policy_resolve import ATTENTION_KERNELS
from torch_piecewise.torch_private.nodes import example_value
from torch_piecewise.torch_private.ops import (
    is_higher_order,
    op_base_name,
    op_name,
    op_overload_name,
    resolved_overload,
)

_OPERATORS: Mapping[str, str] = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "truediv": "div",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "pow",
    "matmul": "matmul",
    "neg": "neg",
    "abs": "abs",
    "invert": "bitwise_not",
    "and_": "bitwise_and",
    "or_": "bitwise_or",
    "xor": "bitwise_xor",
    "lt": "lt",
    "le": "le",
    "gt": "gt",
    "ge": "ge",
    "eq": "eq",
    "ne": "ne",
    "iadd": "add_",
    "isub": "sub_",
    "imul": "mul_",
    "itruediv": "div_",
}
"""Python's operators on tensors, by the ATen operation that each is."""

_HOMES = re.compile(r"(torch|torch\.Tensor|torch\.nn\.functional|torch\._C\._\w+)\.(\w+)")
_NOT_WHAT_IT_IS_CALLED = frozenset(("torch.nn.functional.unfold", "torch.nn.functional.fold"))
"""Functions that share their name with another ATen operation."""

_ATTENTION = "torch.nn.functional.scaled_dot_product_attention"


def target_names(node: Node) -> frozenset[str]:
    """The names of what ``node`` calls, as the graph spells it."""
    if node.op == "call_method":
        return frozenset((f"torch.Tensor.{node.target}",))
    if node.op != "call_function":
        return frozenset()
    return _names_of(_called(node))


def readable(name: str) -> str:
    """A name of :func:`target_names` as people write it in ``splitting_ops``."""
    operator = _OPERATORS.get(name.removeprefix("_operator."))
    if name.startswith("_operator.") and operator is not None:
        return f"torch.{operator}"
    public = name.replace("torch._C._nn.", "torch.nn.functional.")
    return public if hasattr(torch.nn.functional, public.rpartition(".")[2]) else name


def node_names(node: Node) -> frozenset[str]:
    """Every name that ``node`` can be meant by.

    One operation is one thing, however it is spelled: ``torch.sigmoid(x)``, ``x.sigmoid()`` and
    ``aten::sigmoid``; ``x @ y`` and ``torch.matmul``. What an operation was taken apart into carries its
    names too, where the graph tells.
    """
    names = set(target_names(node)) | set(_names_of_leaf(node))
    if not names:
        return frozenset()
    computes_a_size = isinstance(example_value(node), int | float | torch.SymInt | torch.SymFloat)
    if not computes_a_size:
        names.update(aten for name in tuple(names) if (aten := aten_name(name)))
    if op_base_name(_called(node)) is not None:
        names.update(_origins(node))
    return frozenset(names)


def names_of_function(function: Any, dotted: str) -> frozenset[str]:
    """What names a call of ``function``, which people called ``dotted``, can have in a graph."""
    names = {dotted, *_names_of(function)}
    names.update(aten for name in tuple(names) if (aten := aten_name(name)))
    if "aten::scaled_dot_product_attention" in names:
        names |= {_ATTENTION, *ATTENTION_KERNELS}
    own_name = getattr(function, "__name__", "")
    is_torchs = str(getattr(function, "__module__", "")).partition(".")[0] == "torch"
    if is_torchs and hasattr(torch.ops.higher_order, own_name):
        names.add(f"higher_order::{own_name}")
    return frozenset(names)


@functools.lru_cache(maxsize=4096)
def aten_name(dotted: str) -> str | None:
    """``aten::x`` for the torch function, method or Python operator that is this operation; else None."""
    home = _HOMES.fullmatch(dotted)
    base = _OPERATORS.get(dotted.removeprefix("_operator.")) if dotted.startswith("_operator.") else None
    if home is not None and dotted not in _NOT_WHAT_IT_IS_CALLED:
        base = home[2]
    return f"aten::{base}" if base is not None and hasattr(torch.ops.aten, base) else None


def calls_overload(node: Node, wanted: str) -> bool:
    """Whether ``node`` calls the overload ``ns::op.overload``; also where that cannot be told.

    A graph of torch functions names no overloads: what one chooses follows from the arguments. A cut too many
    costs time, one too few compiles what must not be.
    """
    base = wanted.partition(".")[0]
    overloads = {name for name in node_names(node) if name.startswith(f"{base}.")}
    if overloads or base not in node_names(node):
        return wanted in overloads
    try:
        args = map_arg(node.args, _known_value)
        kwargs = map_arg(node.kwargs, _known_value)
    except LookupError:
        return True
    chosen = resolved_overload(base, args, kwargs)
    return chosen in (None, wanted)


def _known_value(node: Node) -> Any:
    value = example_value(node)
    if value is None:
        raise LookupError(node.name)
    return value


def _called(node: Node) -> Any:
    """What a node calls; for a custom op that functionalisation wrapped, that op."""
    name = getattr(node.target, "__name__", "")
    if node.op == "call_function" and name in ("auto_functionalized", "auto_functionalized_v2"):
        return node.args[0] if node.args else node.target
    if node.op == "call_function" and name == "with_effects":
        return node.args[1] if len(node.args) > 1 else node.target
    return node.target


def _names_of(target: Any) -> frozenset[str]:
    base = op_base_name(target)
    if base is not None:
        return frozenset(name for name in (base, op_overload_name(target)) if name is not None)
    if is_higher_order(target):
        return frozenset((f"higher_order::{op_name(target)}",))
    return frozenset((_dotted(target),))


def _origins(node: Node) -> Iterator[str]:
    """Names of what an ATen operation comes from, as AOTAutograd and ``torch.export`` note it."""
    original = node.meta.get("original_aten")
    if original is not None:
        yield from _names_of(original)
    stack = node.meta.get("source_fn_stack")
    if stack:
        for name in _source_names(stack[-1][1]):
            yield name
            if aten := aten_name(name):
                yield aten
    exported = node.meta.get("torch_fn")
    if exported:
        base = str(exported[1]).rpartition(".")[2]
        yield from (f"torch.{base}", f"torch.nn.functional.{base}")


def _names_of_leaf(node: Node) -> Iterator[str]:
    """What torch's own module calls, in a graph that ``torch.fx.symbolic_trace`` made."""
    owner = node.graph.owning_module
    if node.op == "call_module" and owner is not None:
        yield from _source_names(type(owner.get_submodule(str(node.target))))


def _source_names(source: Any) -> Iterator[str]:
    if isinstance(source, str):
        yield f"torch.Tensor.{source}"
    elif isinstance(source, type):
        # Dynamo names the class for a call that torch's own module makes: nn.LayerNorm for F.layer_norm.
        yield from _functions_of_module(source) if source.__module__.startswith("torch.nn.") else ()
    elif callable(source):
        yield from _names_of(source)


@functools.cache
def _functions_of_module(cls: type) -> tuple[str, ...]:
    wanted = cls.__name__.lower()
    functions = vars(torch.nn.functional)
    return tuple(
        f"torch.nn.functional.{name}"
        for name, function in functions.items()
        if name.replace("_", "") == wanted and callable(function)
    )


def _dotted(function: Any) -> str:
    module = getattr(function, "__module__", None)
    name = str(getattr(function, "__qualname__", "") or getattr(function, "__name__", repr(function)))
    if module in (None, "builtins") or name.startswith(("_VariableFunctionsClass.", "PyCapsule.")):
        base = name.rpartition(".")[2]
        if hasattr(torch, base):
            return f"torch.{base}"
        return f"torch._C._nn.{base}" if hasattr(torch.nn.functional, base) else f"builtins.{base}"
    if module == "torch._C._nn":
        return f"torch._C._nn.{name}"
    return f"{module}.{name}"
