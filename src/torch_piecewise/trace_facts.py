"""What a trace tells about replaying its calls: what changes from call to call, and what follows the size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_piecewise.cudagraphs import DynamicInput, Extent
from torch_piecewise.cut_policy import CutPolicy
from torch_piecewise.describe import changed_inputs
from torch_piecewise.pad_values import check_pad_value
from torch_piecewise.padding import why_not_padded
from torch_piecewise.piece import Dim, IntSpec, TensorSpec
from torch_piecewise.relations import size_of
from torch_piecewise.replay_facts import ReplayFacts
from torch_piecewise.splitting import SplitPlan
from torch_piecewise.stitching import stitch
from torch_piecewise.torch_private.nodes import (
    example_value,
    flat_symbol_readers,
    placeholder_facts,
    storage_key,
)
from torch_piecewise.torch_private.shapes import describe_input, dim_text, symbol_names
from torch_piecewise.trace_facts_sizes import unclear_sizes

_ARGUMENT = re.compile(r"L\['(\w+)'\]")
_PLAIN_ARGUMENT = re.compile(r"L\['(\w+)'\]$")


@dataclass(frozen=True)
class TracedCall:
    """The trace that facts are read off.

    Attributes:
        graph: the whole graph, normalised.
        plan: the same, cut.
        dispatch: the symbol that sizes are about; None where no size changes.
        symbols: how a call's value of each symbol of the size key is read, in the key's order.
        arguments: names of the call's arguments; None for every input that is no parameter or buffer.
        partition: where the plan leaves the cuts in the pieces, for Inductor to cut there: what is a cut.
    """

    graph: GraphModule
    plan: SplitPlan
    dispatch: str | None
    symbols: Mapping[str, str]
    arguments: AbstractSet[str] | None = None
    partition: CutPolicy | None = None


def replay_facts(
    call: TracedCall,
    autocast: tuple[tuple[str, torch.dtype], ...],
    pad_values: Mapping[str, float | int | bool],
    named: Mapping[str, Mapping[int, str | None]],
) -> ReplayFacts:
    """Read the facts off a trace.

    Args:
        autocast: what autocast is on for.
        pad_values: what named arguments are padded with, instead of 0.
        named: argument -> dim -> the name that was given to its size; None where none was.
    """
    reader = _Reader(call, pad_values)
    cuts = [item.submod_name for item in call.plan.items if item.is_splitting_graph]
    key, outputs = reader.key(), reader.outputs()
    return ReplayFacts(
        line=stitch(call.plan.module, cuts, as_steps=True),
        key=key,
        count=reader.count,
        inputs=reader.inputs,
        numbers=reader.numbers,
        outputs=outputs,
        names=reader.names,
        device=reader.device(),
        autocast=autocast,
        no_padding=reader.no_padding(),
        no_full=reader.no_full(),
        refusal=reader.refusal(),
        unclear=unclear_sizes(reader.cuts(), call.dispatch, reader.shapes_by_name(), named),
        partitioned=call.partition is not None,
    )


class _Reader:
    def __init__(self, call: TracedCall, pad_values: Mapping[str, float | int | bool]) -> None:
        self._call = call
        self._pad_values = pad_values
        self._sources, self._fakes, _ = placeholder_facts(call.graph)
        self._nodes = [node for node in call.graph.graph.nodes if node.op == "placeholder"]
        self._changed = changed_inputs(call.graph)
        self._wrong: list[str] = []
        self._odd_results: list[str] = []
        self.inputs: dict[int, DynamicInput] = {}
        self.numbers: dict[int, Extent] = {}
        self.names: dict[str, int] = {}
        self.count = len(self._nodes)
        for position in range(self.count):
            self._sort(position)

    # -- inputs

    def _sort(self, position: int) -> None:
        fake, source = self._fakes[position], self._sources[position]
        spec = describe_input(fake)
        name = self._argument(source)
        if isinstance(spec, IntSpec) and self._mentions(spec.value):
            number = self._linear(spec.value, 0)
            self.numbers[position] = number or Extent(0)
            if number is None:
                self._wrong.append(f"input {source} is {spec.value}")
        if not isinstance(fake, torch.Tensor):
            return
        if name is None:
            return
        if _PLAIN_ARGUMENT.match(source):
            self.names[name] = position
        if not isinstance(spec, TensorSpec):
            self._wrong.append(f"argument {name!r} is no plain dense tensor")
            return
        extents = self._extents(spec.size)
        if extents is None:
            self._wrong.append(f"argument {name!r} has size {list(spec.size)}")
            return
        if position not in self._changed or extents:
            pad = self._pad_values.get(name, 0) if _PLAIN_ARGUMENT.match(source) else 0
            check_pad_value(name, pad, fake.dtype)
            self.inputs[position] = DynamicInput(extents, pad, copy_back=position in self._changed)

    def _argument(self, source: str) -> str | None:
        """The argument that an input comes from; None for parameters, buffers, attributes and globals."""
        found = _ARGUMENT.match(source)
        if self._call.arguments is None:
            own = "_parameters[" in source or "_buffers[" in source or source.startswith("G[")
            return None if own else (found[1] if found else source)
        if found is None or found[1] not in self._call.arguments or "_parameters[" in source:
            return None
        return None if "_buffers[" in source else found[1]

    def _mentions(self, dim: Dim) -> bool:
        dispatch = self._call.dispatch
        return isinstance(dim, str) and dispatch is not None and bool(re.search(rf"\b{dispatch}\b", dim))

    def _extents(self, size: Sequence[Dim]) -> tuple[Extent, ...] | None:
        """The dims that follow the size of a call; None where one does so in a way of its own."""
        found = [self._linear(text, dim) for dim, text in enumerate(size) if self._mentions(text)]
        return None if None in found else tuple(extent for extent in found if extent is not None)

    def _linear(self, text: Dim, dim: int) -> Extent | None:
        try:
            first, second, far = (size_of(text, {self._call.dispatch or "": n}) for n in (64, 128, 1088))
        except NameError:  # another symbol stands in it
            return None
        scale, rest = divmod(second - first, 64)
        offset = first - 64 * scale
        linear = not rest and scale >= 1 and far == 1088 * scale + offset
        return Extent(dim, scale, offset) if linear else None

    # -- what the facts say

    def key(self) -> str:
        readers = flat_symbol_readers(self._fakes)
        parts: list[str] = []
        for symbol, source in self._call.symbols.items():
            found = self._read_from_input(source) or readers.get(symbol)
            if found is None:
                self._wrong.append(f"size {source} stands in no input")
            parts.append(found or "0")
        return parts[0] if len(parts) == 1 else f"({', '.join(parts)},)" if parts else "0"

    def _read_from_input(self, source: str) -> str | None:
        """``source`` (over ``L``) as an expression over ``args``."""
        if source in self._sources:
            return f"args[{self._sources.index(source)}]"
        whole, _, dim = source.removesuffix("]").partition(".size()[")
        return f"args[{self._sources.index(whole)}].size({dim})" if whole in self._sources and dim else None

    def outputs(self) -> dict[int, tuple[Extent, ...]]:
        found: dict[int, tuple[Extent, ...]] = {}
        for position, result in enumerate(self._results()):
            value = example_value(result) if isinstance(result, Node) else result
            extents: tuple[Extent, ...] | None = ()
            if isinstance(value, torch.Tensor):
                extents = self._extents([dim_text(size) for size in value.shape])
            elif isinstance(value, torch.SymInt):
                extents = self._extents([dim_text(value)])
            elif isinstance(value, torch.SymFloat):
                extents = None
            elif not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if extents is None:
                self._odd_results.append(f"output {position} follows the size in a way of its own")
            found[position] = extents or ()
        return found

    def _results(self) -> Sequence[Any]:
        output = next(iter(reversed(self._call.graph.graph.nodes)))
        results = output.args[0]
        return results if isinstance(results, tuple | list) else (results,)

    def shapes_by_name(self) -> dict[str, Sequence[Dim]]:
        """Shapes of the tensors that are arguments themselves."""
        fakes = {name: self._fakes[at] for name, at in self.names.items()}
        return {name: [dim_text(size) for size in fake.shape] for name, fake in fakes.items()}

    def device(self) -> torch.device | None:
        tensors = [fake for fake in self._fakes if isinstance(fake, torch.Tensor)]
        on_device = [fake.device for fake in tensors if fake.device.type != "cpu"]
        return on_device[0] if on_device else (tensors[0].device if tensors else None)

    def no_padding(self) -> str:
        if self._call.dispatch is None:
            return "its sizes are fixed"
        if self._odd_results:
            return f"padding would change results: {self._odd_results[0]}"
        padded = {self._nodes[at] for at, one in self.inputs.items() if one.extents}
        is_cut = self._cut_names()
        return why_not_padded(
            self._call.graph.graph, self._call.dispatch, padded, lambda node: node.name in is_cut
        )

    def cuts(self) -> list[Node]:
        """What runs between captured parts: cut pieces, or operations where Inductor cuts."""
        policy = self._call.partition
        if policy is not None:
            return [node for node in self._call.graph.graph.nodes if policy.cut(node)]
        cuts = {item.submod_name for item in self._call.plan.items if item.is_splitting_graph}
        nodes = self._call.plan.module.graph.nodes
        return [node for node in nodes if node.op == "call_module" and node.target in cuts]

    def _cut_names(self) -> frozenset[str]:
        if self._call.partition is not None:
            return frozenset(node.name for node in self.cuts())
        cuts = [item.graph.graph for item in self._call.plan.items if item.is_splitting_graph]
        return frozenset(node.name for graph in cuts for node in graph.nodes if node.op != "placeholder")

    def _on_host(self) -> set[int]:
        """Changing inputs that lie on the CPU while the work is done elsewhere."""
        device = self.device()
        return {
            at
            for at in self.inputs
            if device is not None and device.type != "cpu" and self._fakes[at].device.type == "cpu"
        }

    def no_full(self) -> str:
        names = [self._sources[at] for at in sorted(self._on_host())]
        return f"{names[0]} lies on the CPU, where a graph cannot see it change" if names else ""

    def refusal(self) -> str:
        host = {self._nodes[at].name for at in self._on_host()}
        if any(operand.name in host for node in self._captured() for operand in node.all_input_nodes):
            self._wrong.append("compiled code reads an input that lies on the CPU")
        known = flat_symbol_readers(self._fakes).keys()
        unbacked = [n for n in self._call.graph.graph.nodes if _depends_on_data(n, known)]
        if unbacked:
            self._wrong.append(f"the size of {unbacked[0].name} depends on data")
        if self._shares_changed_memory():
            self._wrong.append("it changes an input that shares memory with another")
        return self._wrong[0] if self._wrong else ""

    def _captured(self) -> Iterator[Node]:
        """The nodes that work between cuts: compiled pieces, or operations where Inductor cuts."""
        if self._call.partition is not None:
            cuts = self._cut_names()
            for node in self._call.graph.graph.nodes:
                if node.op not in ("placeholder", "output") and node.name not in cuts:
                    yield node
            return
        compiled = {item.submod_name for item in self._call.plan.items if not item.is_splitting_graph}
        for node in self._call.plan.module.graph.nodes:
            if node.op == "call_module" and str(node.target) in compiled:
                yield node

    def _shares_changed_memory(self) -> bool:
        keys = [storage_key(fake) if isinstance(fake, torch.Tensor) else None for fake in self._fakes]
        copied = [keys[at] for at in self.inputs]
        return any(
            one.copy_back and keys[at] is not None and copied.count(keys[at]) > 1
            for at, one in self.inputs.items()
        )


def _depends_on_data(node: Node, known: AbstractSet[str]) -> bool:
    value = example_value(node)
    parts: Sequence[Any] = value if isinstance(value, tuple | list) else (value,)
    return any(
        name.startswith(("u", "zu")) and name not in known
        for part in parts
        if isinstance(part, torch.Tensor | torch.SymInt)
        for name in symbol_names(part)
    )
