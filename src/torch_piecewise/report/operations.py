"""The operations of a traced graph, for people."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_piecewise.piece import Dim, InputSpec, IntSpec, TensorSpec
from torch_piecewise.report.facts import Op
from torch_piecewise.torch_private.nodes import example_value
from torch_piecewise.torch_private.ops import op_base_name
from torch_piecewise.torch_private.shapes import dim_text

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_QUIET = frozenset(
    [
        "getitem",
        "view",
        "reshape",
        "chunk",
        "split",
        "size",
        "sym_size",
        "contiguous",
        "transpose",
        "permute",
        "unsqueeze",
        "squeeze",
        "expand",
        "empty",
        "empty_like",
        "new_empty",
        "flatten",
        "t",
        "to",
        "float",
        "type_as",
        "item",
        "detach",
    ]
)
_PARTS_OF_A_PATH = 2


def operations_of(graph: GraphModule) -> tuple[Op, ...]:
    """Every operation of ``graph`` in order; inputs and output left out."""
    nodes = (node for node in graph.graph.nodes if node.op not in ("placeholder", "output"))
    return tuple(
        Op(node.name, target_of(node), value_text(example_value(node)), line_of(node)) for node in nodes
    )


def target_of(node: Node) -> str:
    """What ``node`` calls or reads."""
    if node.op == "call_method":
        return f".{node.target}"
    return name_of(node.target) if node.op == "call_function" else f"{node.op} {node.target}"


def name_of(target: Any) -> str:
    """What people call a function or an op."""
    op = op_base_name(target)
    if op is not None:
        return op
    name = str(getattr(target, "__qualname__", None) or getattr(target, "__name__", None) or target)
    module = str(getattr(target, "__module__", None) or "")
    if module in ("_operator", "builtins", "math", ""):
        return name.rpartition(".")[2]
    # What C++ makes, and the classes that hold it, are nobody's names.
    return f"torch.{name.rpartition('.')[2]}" if "._" in f"{module}.{name}" else f"{module}.{name}"


def title_of(graph: GraphModule) -> str:
    """The operations that do the work, each once, at most four."""
    names = [_short(node) for node in graph.graph.nodes if node.op in ("call_function", "call_method")]
    loud = list(dict.fromkeys(name for name in names if name not in _QUIET))
    shown = " · ".join(loud[:4])
    return f"{shown} …" if len(loud) > 4 else shown or ", ".join(dict.fromkeys(names)) or "nothing"


def _short(node: Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    name = target_of(node).rpartition("::")[2].rpartition(".")[2]
    return name.rpartition(" ")[2]


def value_text(value: Any) -> str:
    """``float32[s0, 16]`` for a fake tensor; several in parentheses; empty for None."""
    if isinstance(value, torch.Tensor):
        return _tensor_text(value.dtype, (dim_text(size) for size in value.shape))
    if isinstance(value, torch.SymInt):
        return str(dim_text(value))
    if isinstance(value, tuple | list):
        return f"({', '.join(map(value_text, value))})"
    return "" if value is None else type(value).__name__


def input_text(name: str, spec: InputSpec | None) -> str:
    """One input of a piece: its name and what it is."""
    if isinstance(spec, TensorSpec):
        where = "" if spec.device.type == "cpu" else f" on {spec.device}"
        return f"{name}: {_tensor_text(spec.dtype, spec.size)}{where}"
    if isinstance(spec, IntSpec):
        return f"{name}: int = {spec.value}"
    return name if spec is None else f"{name} = {spec.value!r}"


def _tensor_text(dtype: torch.dtype, size: Iterable[Dim]) -> str:
    return f"{str(dtype).removeprefix('torch.')}[{', '.join(map(str, size))}]"


def line_of(node: Node) -> str:
    """The innermost line that made ``node`` and is not torch's own, with its file's last folders."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    frames = [(match, index) for index, line in enumerate(lines) if (match := _FRAME.match(line))]
    if not frames:
        return ""
    own = [frame for frame in frames if "/torch/" not in frame[0]["file"].replace("\\", "/")]
    match, index = (own or frames)[-1]
    path = "/".join(PurePath(match["file"]).parts[-_PARTS_OF_A_PATH:])
    code = lines[index + 1] if index + 1 < len(lines) and not _FRAME.match(lines[index + 1]) else ""
    return f"{path}:{match['line']}" + (f" ({code})" if code else "")
