"""Nodes of traced graphs: their fake values, ops and source lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from torch_piecewise.torch_private.shapes import dim_text


def example_value(node: Node) -> Any:
    """The fake value of a node: Dynamo keeps it as ``example_value``, AOTAutograd as ``val``."""
    meta = node.meta
    return meta["example_value"] if "example_value" in meta else meta.get("val")


def graph_module(root: torch.nn.Module, graph: Graph, name: str = "GraphModule") -> GraphModule:
    """A module that runs ``graph``; its code is written when it is first needed.

    Of the many equal pieces of a model one is compiled and the others are only looked at. 2.11 to 2.13.
    """
    module: GraphModule = _LazyGraphModule(root, graph, name)
    return module


def ensure_example_values(graph: GraphModule, example_inputs: Sequence[Any]) -> None:
    """Give every node an example value where the graph has none (a plain FX trace)."""
    nodes = list(graph.graph.nodes)
    if all("example_value" in n.meta or "val" in n.meta for n in nodes if n.op == "placeholder"):
        return
    fakes = [value for value in example_inputs if isinstance(value, FakeTensor)]
    mode = fakes[0].fake_mode if fakes else FakeTensorMode(shape_env=ShapeEnv())
    propagation = FakeTensorProp(graph, mode)
    if fakes:
        propagation.propagate_dont_convert_inputs(*example_inputs)
    else:
        propagation.propagate(*example_inputs)
    for node in nodes:
        node.meta.setdefault("example_value", node.meta.get("val"))


def give_example_values(graph: GraphModule, values: Sequence[Any], mode: FakeTensorMode) -> None:
    """Give every node an example value that follows from these fake inputs; what the nodes had is dropped.

    In-place operations of the graph run on ``values``: they may change shape, never data.
    """
    for node in graph.graph.nodes:
        node.meta.pop("example_value", None)
        node.meta.pop("val", None)
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*values)
    for node in graph.graph.nodes:
        node.meta["example_value"] = node.meta.get("val")


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


def storage_key(value: torch.Tensor) -> int | None:
    """A number that two fake tensors share exactly when they share memory; None where there is none."""
    if value.layout is not torch.strided:
        return None
    try:
        return int(value.untyped_storage()._cdata)
    except NotImplementedError:  # inside a functorch transform
        return None


def target_label(node: Node) -> str:
    """What a node calls, in one word."""
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
