"""Write the straight-line function that calls the pieces in order.

The source is made once per program; one function per range is made from it by binding that range's
callables. Compiled pieces are called by name, cut ops stand in line, and every value is deleted after
its last use, so that memory peaks where the uncompiled model's does.
"""

from __future__ import annotations

import builtins
import hashlib
import linecache
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import GraphModule, Node

from torch_piecewise.cudagraphs.breakable import cut_step
from torch_piecewise.torch_private.ops import op_base_name

Runner = Callable[..., tuple[Any, ...]]
"""A stitched function: takes the graph's inputs in order, returns its outputs as a tuple."""


@dataclass(frozen=True)
class Stitched:
    """The straight-line program of one split graph.

    Attributes:
        source: readable Python: ``def make(...)`` returns ``run``.
        pieces: names of the callables that :meth:`bind` wants.
        constants: other objects that the source refers to by name.
        inputs: for each piece, which of the line's own arguments it takes: their positions, by position among
            the piece's inputs.
    """

    source: str
    pieces: tuple[str, ...]
    constants: Mapping[str, Any] = field(repr=False)
    inputs: Mapping[str, Mapping[int, int]] = field(repr=False)

    def replaced(self, body_of: Callable[[Any], Callable[..., Any] | None]) -> Stitched:
        """The same line with other objects behind some constants.

        Args:
            body_of: for a constant, what to call instead of it; None to keep it.
        """
        constants = {name: body_of(value) or value for name, value in self.constants.items()}
        return replace(self, constants=constants)

    def bind(self, callables: Mapping[str, Callable[..., Any]]) -> Runner:
        """The function for one range.

        Args:
            callables: one per name in :attr:`pieces`; each takes the piece's inputs, returns a tuple.
        """
        digest = hashlib.sha256(self.source.encode()).hexdigest()[:12]
        filename = f"<torch-piecewise runner {digest}>"
        scope = {**self.constants, **{name: callables[name] for name in self.pieces}}
        code = compile(self.source, filename, "exec")
        linecache.cache[filename] = (len(self.source), None, self.source.splitlines(True), filename)
        exec(code, scope)
        make: Callable[..., Runner] = scope["make"]
        return make(*(scope[name] for name in (*self.pieces, *self.constants)))


def stitch(module: GraphModule, inline: Iterable[str], *, as_steps: bool = False) -> Stitched:
    """Write the straight line for a split graph.

    Args:
        module: as made by ``split_graph``.
        inline: names of the pieces whose operations stand in line (the cuts).
        as_steps: let each run of cuts with nothing between them be a function of its own, marked as
            :func:`~torch_piecewise.cudagraphs.cut_step`: for calls that are captured.
    """
    return _Writer(module, frozenset(inline), as_steps=as_steps).write()


class _Writer:
    def __init__(self, module: GraphModule, inline: frozenset[str], *, as_steps: bool) -> None:
        self.module = module
        self.as_steps = as_steps
        self.steps: list[str] = []
        self.inline = inline
        self.names: dict[Node, str] = {}
        self.taken: set[str] = set(dir(builtins)) | {"make", "run"}
        self.constants: dict[str, Any] = {}
        self.constant_names: dict[tuple[str, int], str] = {}
        self.pieces: list[str] = []
        self.arguments: dict[Node, int] = {}
        self.inputs: dict[str, dict[int, int]] = {}
        self.lines: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []  # text, defines, reads
        self.reads: list[str] = []

    def write(self) -> Stitched:
        result = "return ()"
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.arguments[node] = len(self.arguments)
                self._name(node)
            elif node.op == "output":
                self.reads = []
                result = f"return {self._outputs(node.args[0])}"
            elif self._is_cut(node):
                if not self.as_steps:
                    self._inline_piece(node)
                elif not self._is_cut(self._call_before(node)):
                    self._cut_step(node)
            elif node.op == "call_module":
                self._call_piece(node)
            elif not self._is_part_of_piece(node):
                self._statement(node, self.module)
        return self._finish(result)

    # -- statements

    def _call_piece(self, node: Node) -> None:
        self.reads = []
        piece = str(node.target)
        self.pieces.append(piece)
        self.taken.add(piece)
        taken = {at: self.arguments.get(arg) for at, arg in enumerate(node.args) if isinstance(arg, Node)}
        self.inputs[piece] = {at: argument for at, argument in taken.items() if argument is not None}
        call = f"{piece}({', '.join(map(self._format, node.args))})"
        results = self._part_names(node)
        left = f"{', '.join(results)}{',' if len(results) == 1 else ''} = " if results else ""
        self.lines.append((f"{left}{call}", tuple(results), tuple(self.reads)))

    def _part_names(self, call: Node) -> list[str]:
        count = len(call.meta["example_value"])
        parts = {user.args[1]: user for user in call.users}
        return [self._name(parts[i]) if i in parts else self._fresh("_unused") for i in range(count)]

    @staticmethod
    def _is_part_of_piece(node: Node) -> bool:
        taken_from = node.args[0] if node.args else None
        is_part = node.op == "call_function" and node.target is operator.getitem
        return is_part and isinstance(taken_from, Node) and taken_from.op == "call_module"

    def _inline_piece(self, call: Node) -> None:
        piece = self.module.get_submodule(str(call.target))
        assert isinstance(piece, GraphModule)
        operands = iter(call.args)
        parts = {user.args[1]: user for user in call.users}
        for node in piece.graph.nodes:
            if node.op == "placeholder":
                operand = next(operands)
                assert isinstance(operand, Node)
                self.names[node] = self.names[operand]
            elif node.op == "output":
                for index, value in enumerate(node.args[0]):
                    if index in parts:
                        self.names[parts[index]] = self.names[value]
            else:
                self._statement(node, piece)

    def _is_cut(self, node: Node | None) -> bool:
        return node is not None and node.op == "call_module" and str(node.target) in self.inline

    def _call_before(self, node: Node) -> Node | None:
        before = node.prev
        while self._is_part_of_piece(before):
            before = before.prev
        return before if before.op == "call_module" else None

    def _cut_step(self, first: Node) -> None:
        """Write ``first`` and the cuts that follow it directly as one function, and the call of it."""
        line, self.lines = self.lines, []
        calls = [first]
        self._inline_piece(first)
        after = first.next
        while self._is_cut(after) or self._is_part_of_piece(after):
            if self._is_cut(after):
                self._inline_piece(after)
                calls.append(after)
            after = after.next
        body, self.lines = self.lines, line
        defined = {name for _text, defines, _reads in body for name in defines}
        read = dict.fromkeys(name for _text, _defines, reads in body for name in reads)
        takes = tuple(name for name in read if name not in defined)
        gives = tuple(
            self.names[part]
            for call in calls
            for part in call.users
            if part in self.names and self.names[part] in defined and not set(part.users) <= set(calls)
        )
        name = self._fresh(str(first.target).replace("submod", "cut"))
        mark = self._constant("cut_step", cut_step)
        self.steps += [
            f"    def {name}({', '.join(takes)}):",
            *(f"        {text}" for text, _defines, _reads in body),
            f"        return {_tuple_text(gives)}",
            f"    {name} = {mark}({name})",
        ]
        left = f"{', '.join(gives)}{',' if len(gives) == 1 else ''} = " if gives else ""
        self.lines.append((f"{left}{name}({', '.join(takes)})", gives, takes))

    def _statement(self, node: Node, owner: GraphModule) -> None:
        self.reads = []
        text = self._expression(node, owner)
        if node.users or node.op == "get_attr":
            name = self._name(node)
            self.lines.append((f"{name} = {text}", (name,), tuple(self.reads)))
        else:
            self.lines.append((text, (), tuple(self.reads)))

    def _expression(self, node: Node, owner: GraphModule) -> str:
        args = [self._format(arg) for arg in node.args]
        keywords = [f"{key}={self._format(arg)}" for key, arg in node.kwargs.items()]
        if node.op == "call_method":
            return f"{args[0]}.{node.target}({', '.join(args[1:] + keywords)})"
        if node.op == "get_attr":
            value: Any = owner
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return self._constant(str(node.target).rpartition(".")[2], value)
        if node.op == "call_module":
            called = self._constant(str(node.target), owner.get_submodule(str(node.target)))
            return f"{called}({', '.join(args + keywords)})"
        if node.target is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        called = self._constant(_label(node.target), node.target)
        return f"{called}({', '.join(args + keywords)})"

    # -- names and values

    def _name(self, node: Node) -> str:
        if node not in self.names:
            self.names[node] = self._fresh(node.name)
        return self.names[node]

    def _fresh(self, wanted: str) -> str:
        base = wanted if wanted.isidentifier() else "value"
        name, count = base, 1
        while name in self.taken:
            name, count = f"{base}_{count}", count + 1
        self.taken.add(name)
        return name

    def _constant(self, label: str, value: Any) -> str:
        key = (label, id(value))
        if key not in self.constant_names:
            name = self._fresh(label.replace(".", "_"))
            self.constant_names[key] = name
            self.constants[name] = value
        return self.constant_names[key]

    def _outputs(self, value: Any) -> str:
        if isinstance(value, tuple | list):
            return _tuple_text(map(self._format, value))
        return self._format(value)

    def _format(self, value: Any) -> str:
        if isinstance(value, Node):
            self.reads.append(self._name(value))
            return self._name(value)
        if isinstance(value, tuple):
            return _tuple_text(map(self._format, value))
        if isinstance(value, list):
            return f"[{', '.join(map(self._format, value))}]"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{key!r}: {self._format(item)}" for key, item in value.items()) + "}"
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            return f"slice({', '.join(map(self._format, parts))})"
        finite = not isinstance(value, float) or value - value == 0
        if value is None or value is Ellipsis or (isinstance(value, bool | int | float | str) and finite):
            return "..." if value is Ellipsis else repr(value)
        return self._constant(_label(value), value)

    # -- text

    def _finish(self, result: str) -> Stitched:
        last_use: dict[str, int] = {}
        for index, (_text, defines, reads) in enumerate(self.lines):
            for name in (*defines, *reads):
                last_use[name] = index
        kept = set(self.reads)
        body: list[str] = []
        for index, (text, defines, reads) in enumerate(self.lines):
            body.append(text)
            dead = [name for name in dict.fromkeys((*reads, *defines)) if last_use[name] == index]
            dead = [name for name in dead if name not in kept]
            if dead:
                body.append(f"del {', '.join(dead)}")
        parameters = ", ".join((*dict.fromkeys(self.pieces), *self.constants))
        lines = [
            f"def make({parameters}):",
            *self.steps,
            f"    def run({', '.join(map(self._name, self.arguments))}):",
            *(f"        {line}" for line in (*body, result)),
            "    return run",
        ]
        pieces = tuple(dict.fromkeys(self.pieces))
        return Stitched("\n".join(lines) + "\n", pieces, self.constants, self.inputs)


def _tuple_text(items: Iterable[str]) -> str:
    parts = list(items)
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def _label(target: Any) -> str:
    op = op_base_name(target)
    if op is not None:
        return op.replace("::", "_")
    name = getattr(target, "__name__", None) or type(target).__name__
    return name if name.isidentifier() else "constant"
