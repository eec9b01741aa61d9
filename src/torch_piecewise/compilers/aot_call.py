"""What surrounds a piece's machine code, which takes tensors and returns tensors and nothing else.

Sizes are read off the tensors, constants are written in, an output that lies in an input's memory is made
from the input, and a number that an output is comes from the sizes. All that is Python, written here.
"""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_piecewise.errors import CompileError
from torch_piecewise.torch_private.fake_inputs import FakeInputs
from torch_piecewise.torch_private.nodes import example_value, give_example_values, storage_key
from torch_piecewise.torch_private.shapes import expression_text, readable_symbols

_NAME = re.compile(r"\b[a-z]\w*\b(?!\()")


@dataclass(frozen=True)
class CallPlan:
    """One piece, taken apart.

    Attributes:
        graph: what is left to compile; None where all outputs come from inputs and nothing is changed.
        values: the fake value of each of its inputs.
        source: Python: ``make(run)`` returns the piece, a function of the piece's inputs that returns a
            tuple; ``run`` takes the tensors of ``graph`` and returns a sequence.
    """

    graph: GraphModule | None
    values: list[Any]
    source: str


def plan_call(graph: GraphModule, fakes: FakeInputs) -> CallPlan:
    """Take a piece apart.

    Args:
        graph: the piece; not changed.
        fakes: fake values of its inputs.

    Raises:
        CompileError: an output cannot be made from what the machine code returns.
    """
    return _Planner(graph, fakes).plan()


class _Planner:
    def __init__(self, graph: GraphModule, fakes: FakeInputs) -> None:
        self.module = copy.deepcopy(graph)
        before = _layouts(fakes.values)
        give_example_values(self.module, fakes.values, fakes.mode)
        if _layouts(fakes.values) != before:
            raise _cannot("an input whose shape is changed in place")
        self.fakes = fakes.values
        self.placeholders = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        self.readers = readable_symbols([f"a{i}" for i in range(len(self.fakes))], self.fakes)
        self.memory = {
            storage_key(value): index
            for index, value in reversed(list(enumerate(self.fakes)))
            if isinstance(value, torch.Tensor) and storage_key(value) is not None
        }
        self.passed: list[str] = []
        self.values: list[Any] = []
        self.kept: dict[Node, str] = {}

    def plan(self) -> CallPlan:
        output = self.module.graph.output_node()
        returned: Any = output.args[0]
        results = [self._result(value) for value in returned]
        output.args = (tuple(self.kept),)
        for index, node in enumerate(self.placeholders):
            self._input(index, node)
        runs = bool(self.kept) or any(map(_may_matter, self.module.graph.nodes))
        self.module.graph.lint()
        self.module.recompile()
        source = _source(len(self.fakes), self.passed, list(self.kept.values()), results, runs=runs)
        return CallPlan(self.module if runs else None, self.values, source)

    # -- outputs

    def _result(self, value: Any) -> str:
        """Python that makes one output."""
        if not isinstance(value, Node):
            if value is None or isinstance(value, bool | int | float | str):
                return repr(value)
            raise _cannot(f"a constant of type {type(value).__name__} as an output")
        itself = _changed(value)
        if itself in self.placeholders:
            return f"a{self.placeholders.index(itself)}"
        fake = example_value(value)
        if isinstance(fake, torch.Tensor):
            base = self.memory.get(storage_key(fake)) if fake.layout is torch.strided else None
            return self._keep(value) if base is None else self._view(fake, base)
        if fake is None or isinstance(fake, bool | str):
            return repr(fake)
        text = self._text(fake)
        return f"{self._keep(value)}.item()" if text is None else text

    def _keep(self, node: Node) -> str:
        return self.kept.setdefault(node, f"o{len(self.kept)}")

    def _view(self, fake: torch.Tensor, base: int) -> str:
        source = self.fakes[base]
        if fake.dtype != source.dtype or fake.is_conj() != source.is_conj():
            raise _cannot(f"an output that reads the memory of an input of {source.dtype} as {fake.dtype}")
        size, stride = (self._tuple(dims) for dims in (fake.shape, fake.stride()))
        offset = self._needed(fake.storage_offset() - source.storage_offset())
        start = f"a{base}.storage_offset()" + (f" + {offset}" if offset != "0" else "")
        return f"a{base}.as_strided({size}, {stride}, {start})"

    def _tuple(self, dims: Sequence[Any]) -> str:
        return "(" + "".join(f"{self._needed(dim)}, " for dim in dims) + ")"

    def _needed(self, value: Any) -> str:
        text = self._text(value)
        if text is None:
            raise _cannot("a view of an input whose size depends on data")
        return text

    def _text(self, value: Any) -> str | None:
        """A number over the arguments; None where it depends on data."""
        text = expression_text(value)
        names = set(_NAME.findall(text))
        if not names <= self.readers.keys():
            return None
        return f"({_NAME.sub(lambda match: self.readers[match[0]], text)})" if names else text

    # -- inputs

    def _input(self, index: int, node: Node) -> None:
        fake = self.fakes[index]
        if isinstance(fake, torch.Tensor):
            self._pass(f"a{index}", fake)
        elif isinstance(fake, torch.SymInt) and not self._read_off_tensor(node, fake):
            self._pass(f"tensor(a{index})", fake)
        elif not isinstance(fake, torch.SymInt):
            node.replace_all_uses_with(fake)
            _drop(node)

    def _pass(self, text: str, fake: Any) -> None:
        self.passed.append(text)
        self.values.append(fake)

    def _read_off_tensor(self, node: Node, fake: torch.SymInt) -> bool:
        """Let a size be read from a tensor that has it; whether one has."""
        wanted = expression_text(fake)
        for position, other in enumerate(self.fakes):
            if not isinstance(other, torch.Tensor):
                continue
            for dim, size in enumerate(other.shape):
                if isinstance(size, torch.SymInt) and expression_text(size) == wanted:
                    holder = self.placeholders[position]
                    with self.module.graph.inserting_after(self.placeholders[-1]):
                        read = self.module.graph.call_function(torch.ops.aten.sym_size.int, (holder, dim))
                    node.replace_all_uses_with(read)
                    _drop(node)
                    return True
        return False


def _drop(node: Node) -> None:
    node.graph.erase_node(node)


def _may_matter(node: Node) -> bool:
    """Whether it has to run though nobody takes its result; what is left in doubt runs."""
    if node.op == "call_method":
        return node.target not in _VIEWS
    return node.op == "call_module" or (node.op == "call_function" and node.target not in _READERS)


def _changed(node: Node) -> Node:
    """What an in-place operation changed and returned; of any other node, the node itself."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    of_operator = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
    in_place = (node.op == "call_method" and name.endswith("_")) or (of_operator and name in _IN_PLACE)
    return _changed(node.args[0]) if in_place and isinstance(node.args[0], Node) else node


_IN_PLACE_NAMES = "iadd iand ifloordiv ilshift imod imul ior ipow irshift isub itruediv ixor"
_IN_PLACE = frozenset(_IN_PLACE_NAMES.split())
_VIEW_NAMES = """
    view reshape t transpose permute unsqueeze squeeze flatten unflatten expand expand_as view_as chunk split
    narrow select unbind movedim swapaxes detach size stride dim numel
"""
_VIEWS = frozenset(_VIEW_NAMES.split())
_READERS = frozenset((operator.getitem, getattr, torch.ops.aten.sym_size.int))


def _layouts(values: Sequence[Any]) -> list[Any]:
    return [(tuple(v.shape), v.stride()) for v in values if isinstance(v, torch.Tensor)]


def _cannot(what: str) -> CompileError:
    return CompileError(
        f"AOTInductor cannot take {what}",
        hint="on_piece_error='eager' runs this piece uncompiled; backend='inductor' compiles it",
    )


def _source(count: int, passed: list[str], kept: list[str], results: list[str], *, runs: bool) -> str:
    lines = []
    whole = runs and results == kept
    call = f"run(({''.join(f'{text}, ' for text in passed)}))"
    if runs and not whole:
        lines.append(f"{''.join(f'{name}, ' for name in kept)} = {call}" if kept else call)
    given = ", ".join(f"a{i}" for i in range(count))
    result = f"tuple({call})" if whole else f"({''.join(f'{text}, ' for text in results)})"
    lines.append(f"return {result}")
    body = "".join(f"        {line}\n" for line in lines)
    return f"def make(run):\n    def piece({given}):\n{body}    return piece\n"
