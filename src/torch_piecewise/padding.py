"""May a call be padded to a larger size? What the traced graph tells about it.

A padded call is right where no token's result depends on the tokens behind it in the batch, nor on how many
there are. The graph is gone through once, and each value is one of three things:

* it has nothing to do with the size of the batch;
* it carries the tokens, in order, along exactly one of its dims, of ``n`` or ``k * n`` rows;
* anything else, which refuses padding.

Which operations keep to that is a list of what is known: ``padding_rules.RULES``. An operation of torch that
is not listed refuses. Nobody can tell of a custom operation: whoever asks for captured sizes promises it, as
engines do.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

import torch
from torch.fx import Graph, Node

from torch_piecewise.cut_policy_names import target_names
from torch_piecewise.padding_rules import ATTENTION, NUMBERS, RULES, UNKNOWN
from torch_piecewise.padding_steps import Step, Tokens, op_name, size_text, tensors
from torch_piecewise.torch_private.nodes import example_value, storage_key, user_line

_BUILT_IN = frozenset(("aten", "prims", "prim", "higher_order"))
_TRITON = "triton_kernel_wrapper"
_WRITERS = frozenset(
    ("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
)


def why_not_padded(
    graph: Graph, symbol: str, padded: AbstractSet[Node], is_cut: Callable[[Node], bool] = lambda node: False
) -> str:
    """Why calls of this graph cannot be padded; empty where every step is known to be harmless.

    Args:
        symbol: the size that padding changes.
        padded: the inputs that are padded.
        is_cut: whether a node runs between the captured pieces; its operation is trusted, but for attention
            that is torch's own.
    """
    checker = _Checker(symbol)
    for node in graph.nodes:
        reason = checker.look_at(node, node in padded, is_cut(node))
        if reason:
            return reason
    return ""


class _Checker:
    def __init__(self, symbol: str) -> None:
        self._tokens = Tokens(symbol)
        self._unrelated_memory: set[int] = set()

    def look_at(self, node: Node, padded: bool, cut: bool) -> str:
        if node.op == "placeholder":
            return self._input(node, padded)
        if node.op == "output":
            return self._outputs(node.all_input_nodes)
        step = Step(node, self._tokens)
        takes_tokens = any(operand in self._tokens.nodes for operand in node.all_input_nodes)
        takes_size = any(self._tokens.is_size(operand) for operand in node.all_input_nodes)
        gives_tensors = bool(step.results)
        is_number = not gives_tensors and node.target != operator.setitem
        if not takes_tokens and not self._tokens.shows(example_value(node)) and (is_number or not takes_size):
            self._remember(node)
            return ""
        trusted = cut and op_name(node) != ATTENTION
        reason = "" if trusted else self._rule(step, takes_tokens, takes_size, is_number)
        reason = reason or ("" if is_number else self._result(step, takes_tokens))
        if not reason and gives_tensors and (takes_tokens or self._tokens.shows(example_value(node))):
            self._tokens.nodes.add(node)
        return self._because(node, reason) if reason else ""

    def _input(self, node: Node, padded: bool) -> str:
        if not padded:
            value = example_value(node)
            if isinstance(value, torch.Tensor) and self._tokens.shows(value):
                return f"padding would change results: input {node.name} has the size, but is not padded"
            self._remember(node)
            return ""
        self._tokens.nodes.add(node)
        place = self._tokens.place(example_value(node))
        if place is None or place.text != self._tokens.symbol:
            return f"input {node.name} does not have exactly one dim of that size"
        return ""

    def _outputs(self, results: Iterable[Node]) -> str:
        for node in results:
            value = example_value(node)
            if node in self._tokens.nodes and isinstance(value, torch.Tensor):
                place = self._tokens.place(value)
                if place is None or place.text != self._tokens.symbol:
                    sizes = [size_text(size) for size in value.shape]
                    return self._because(node, f"gives a result of size {sizes}")
        return ""

    def _rule(self, step: Step, takes_tokens: bool, takes_size: bool, is_number: bool) -> str:
        """Why the operation itself is not harmless."""
        node, name = step.node, op_name(step.node)
        if is_number and (not takes_tokens or name in NUMBERS):
            return ""
        if _is_custom(node):
            return "computes with the size" if takes_size else ""
        rule = RULES.get(name)
        if rule is None and name.endswith("_") and not name.endswith("__"):
            rule = RULES.get(name[:-1])
            rule = rule if rule is not None and rule.in_place else None
        if rule is None or node.kwargs.get("out") is not None:
            return UNKNOWN
        if takes_size and not rule.sizes:
            return "computes with the size"
        if _writes(name) and self._shares_unrelated_memory(node):
            return "writes as many rows as there are tokens into something of another size"
        return rule.check(step)

    def _result(self, step: Step, takes_tokens: bool) -> str:
        values = step.results or list(tensors(example_value(step.first))) if step.first else step.results
        for value in values:
            dims = self._tokens.dims(value)
            if not dims and takes_tokens:
                return "leaves no dim for tokens"
            if len(dims) > 1:
                return "pairs tokens with each other"
            if dims and self._tokens.place(value) is None:
                return f"makes {dims[0]} rows of {self._tokens.symbol}"
        return ""

    def _remember(self, node: Node) -> None:
        keys = (storage_key(value) for value in tensors(example_value(node)))
        self._unrelated_memory.update(key for key in keys if key is not None)

    def _shares_unrelated_memory(self, node: Node) -> bool:
        written = node.args[0] if node.args else None
        value = example_value(written) if isinstance(written, Node) else None
        return isinstance(value, torch.Tensor) and storage_key(value) in self._unrelated_memory

    def _because(self, node: Node, what: str) -> str:
        name = op_name(node) or node.name
        return f"padding would change results: {name} {what}, at {user_line(node)}"


def _is_custom(node: Node) -> bool:
    if node.op != "call_function":
        return False
    names = [name for name in target_names(node) if "::" in name]
    return any(
        name.partition("::")[0] not in _BUILT_IN or re.search(_TRITON, name) is not None for name in names
    )


def _writes(name: str) -> bool:
    return name in _WRITERS or (name.endswith("_") and not name.endswith("__"))
