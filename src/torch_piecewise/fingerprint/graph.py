"""Canonical lines of a graph: one per node, its arguments by position, its constants in full."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.fx import GraphModule, Node

from torch_piecewise.errors import FingerprintError
from torch_piecewise.fingerprint.modules import module_lines, refuse_hooks
from torch_piecewise.fingerprint.objects import TORCH_NAMESPACES
from torch_piecewise.fingerprint.placement import Placement, names_only_a_device_type
from torch_piecewise.fingerprint.symbols import SymbolNames
from torch_piecewise.fingerprint.triton import is_triton_call, kernel_arguments, triton_text
from torch_piecewise.fingerprint.values import ValueWriter, is_plain
from torch_piecewise.torch_private.ops import (
    has_plain_calling_convention,
    is_dispatcher_op,
    is_higher_order,
    op_argument_names,
    op_name,
)

LabelStrings = Callable[[Node, str], bool] | frozenset[tuple[str, str]]
"""Which string arguments of custom ops only label.

Either asked with the node and the string, or a set of (op, argument name), the op as ``ns::name`` for
all its overloads or ``ns::name.overload`` for one (``default`` for the one without a name). Strings of
torch's own ops are never labels.
"""

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)

# Dynamo writes the traced names of nodes and symbols into the messages of the checks that it adds.
_CHECKS = frozenset(
    {"op aten::_assert_scalar", "op aten::_assert_async.msg", "op aten::_functional_assert_async.msg"}
)
_TRACED_MESSAGE = "Runtime assertion failed for expression "

# These take indices into tables of this process, and nothing public tells what stands there.
_OPAQUE_OPS = frozenset({"inductor_compiled_code", "invoke_leaf_function"})
_OPAQUE_FUNCTION = "torch._dynamo.graph_bytecode_inputs.get_external_object_by_index"

_COLLECTIVES = frozenset({"c10d", "_c10d_functional", "_c10d_functional_autograd"})


class GraphWriter:
    """Writes the graphs and modules of one piece.

    Args:
        symbols: canonical names of the piece's symbols.
        placement: canonical names of its devices; also told what it should know.
        labels: strings that do not count.
    """

    def __init__(self, symbols: SymbolNames, placement: Placement, labels: LabelStrings) -> None:
        self._symbols = symbols
        self._placement = placement
        self._labels = labels
        self._values = ValueWriter(self._special)
        self._numbers: dict[Node, str] = {}
        self._objects: dict[int, tuple[object, str]] = {}
        self._storages: dict[tuple[torch.device, int], str] = {}
        self._pending: deque[tuple[str, torch.nn.Module]] = deque()

    def text(self, value: object) -> str:
        """Canonical text of a value where this piece mentions it."""
        return self._values.text(value)

    def lines(self, module: GraphModule, inputs: Sequence[str]) -> list[str]:
        """The graph's lines, then those of each graph and module that it refers to.

        Args:
            inputs: what to write for each placeholder.
        """
        lines = self._graph_lines(module, iter(inputs))
        while self._pending:
            name, nested = self._pending.popleft()
            if isinstance(nested, GraphModule):
                nested_lines = self._graph_lines(nested, itertools.repeat("placeholder"))
            else:
                nested_lines = module_lines(nested, self.attribute)
            lines += [f"{name}:", *(f"  {line}" for line in nested_lines)]
        return lines

    def attribute(self, value: object) -> str:
        """Canonical text of something that a graph or module holds as an attribute.

        Tensors and modules are numbered: whether two names mean one object counts.
        """
        if isinstance(value, torch.nn.Module):
            return self._object(value, "graph" if isinstance(value, GraphModule) else "module")
        if isinstance(value, torch.Tensor):
            text = self.text(value)
            return f"{self._object(value, 'tensor')} {self._storage(value)} {text}"
        return self.text(value)

    def _graph_lines(self, module: GraphModule, inputs: Iterator[str]) -> list[str]:
        refuse_hooks(module)
        if not has_plain_calling_convention(module.graph):
            raise FingerprintError(
                "A graph repacks its inputs or outputs",
                expected="a graph with torch.fx's default CodeGen",
                hint="build the piece with a new torch.fx.Graph, or call graph.set_codegen(CodeGen())",
            )
        return [
            self._line(module, f"%{number}", node, inputs) for number, node in enumerate(module.graph.nodes)
        ]

    def _line(self, module: GraphModule, number: str, node: Node, inputs: Iterator[str]) -> str:
        try:
            text = self._node(module, node, inputs)
        except FingerprintError as error:
            raise FingerprintError(
                f"Node {node.name} ({node.op} {node.target}): {error.what}",
                expected=error.expected,
                got=error.got,
                hint=error.hint,
            ) from error
        self._numbers[node] = number
        return f"{number} = {text}"

    def _node(self, module: GraphModule, node: Node, inputs: Iterator[str]) -> str:
        match node.op:
            case "placeholder":
                return next(inputs) + (f" default {self.text(node.args[0])}" if node.args else "")
            case "get_attr":
                return f"get_attr {self.attribute(_resolved(module, str(node.target)))}"
            case "call_module":
                return f"call {self.attribute(_resolved(module, str(node.target)))}{self._arguments(node)}"
            case "call_method":
                self._placement.note_call(node, str(node.target))
                return f"call method {node.target!a}{self._arguments(node)}"
            case "call_function":
                return f"call {self._target(node)}{self._arguments(node)}"
        return f"output {self.text(node.args[0])}"

    def _target(self, node: Node) -> str:
        text = self.text(node.target)
        if text == _OPAQUE_FUNCTION or (is_higher_order(node.target) and op_name(node.target) in _OPAQUE_OPS):
            raise FingerprintError(
                "A call takes an index into a table of this process",
                expected="a call whose arguments say what it does",
                got=text,
                hint="cut the graph at this call, or keep it out of the compiled region",
            )
        if not is_dispatcher_op(node.target):
            self._placement.note_call(node, text)
        return text

    def _arguments(self, node: Node) -> str:
        known = kernel_arguments(node, self._values) if is_triton_call(node.target) else {}
        names = op_argument_names(node.target)
        texts = [
            self._argument(node, names[place] if place < len(names) else "", value)
            for place, value in enumerate(node.args)
        ]
        for name in sorted(node.kwargs):
            texts.append(f"{name}={known.get(name) or self._argument(node, name, node.kwargs[name])}")
        return f"({', '.join(texts)})"

    def _argument(self, node: Node, name: str, value: object) -> str:
        self._placement.note_argument(name, value)
        if not isinstance(value, str):
            return self.text(value)
        if is_label(self._labels, node, name, value):
            return "<label>"
        if value.startswith(_TRACED_MESSAGE) and self._values.text(node.target) in _CHECKS:
            return "<message>"
        # Autocast takes a kind of device by a string, and never one device.
        return ascii(value) if names_only_a_device_type(node.target) else self.text(value)

    def _special(self, value: object) -> str | None:
        if isinstance(value, Node):
            return self._reference(value)
        kind = type(value)
        if kind is str:
            self._placement.note_word(str(value))
        elif isinstance(value, torch.device):
            return self._placement.text(value)
        elif isinstance(value, _SYMBOLIC):
            return f"symbolic {self._symbols.text(str(value))}"
        elif isinstance(value, dict) and is_plain(value, dict):
            # Nothing says that an op does not read a dict in its order.
            return f"{{{', '.join([f'{self.text(key)}: {self.text(value[key])}' for key in value])}}}"
        elif kind.__module__.startswith("triton."):
            return triton_text(value, self._values)
        return None

    def _reference(self, node: Node) -> str:
        number = self._numbers.get(node)
        if number is None:
            raise FingerprintError(
                f"The graph uses node {node.name} before, or without, computing it",
                expected="nodes in topological order, all of one graph",
                hint="call graph.lint() to find where it was broken",
            )
        return number

    def _object(self, value: object, kind: str) -> str:
        if id(value) not in self._objects:
            self._objects[id(value)] = (value, f"{kind}#{len(self._objects)}")
            if isinstance(value, torch.nn.Module):
                self._pending.append((self._objects[id(value)][1], value))
        return self._objects[id(value)][1]

    def _storage(self, tensor: torch.Tensor) -> str:
        address = tensor.untyped_storage().data_ptr()
        if address == 0:
            return "storage#none"
        return self._storages.setdefault((tensor.device, address), f"storage#{len(self._storages)}")


def is_label(labels: LabelStrings, node: Node, argument: str, value: str) -> bool:
    """Whether a string argument of a node only labels; never true for torch's own ops and functions."""
    if not is_dispatcher_op(node.target) or is_higher_order(node.target):
        return False
    name = op_name(node.target)
    op, _, overload = name.partition(".")
    if op.partition("::")[0] in TORCH_NAMESPACES | _COLLECTIVES:
        return False
    if callable(labels):
        return labels(node, value)
    return (op, argument) in labels or (f"{op}.{overload or 'default'}", argument) in labels


def _resolved(module: torch.nn.Module, target: str) -> object:
    found: object = module
    for name in target.split("."):
        if not hasattr(found, name):
            raise FingerprintError(
                f"The graph's module has no attribute {target}",
                expected=f"an attribute {name} of {type(found).__name__}",
                hint="call graph.lint() to find where it was broken",
            )
        found = getattr(found, name)
    return found
