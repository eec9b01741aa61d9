"""Which nodes are cuts: splitting ops by name, by function, by module class or by predicate."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch.fx import Graph, GraphModule, Node
from torch.nn import Module

from torch_piecewise.cut_policy_modules import is_call_of, module_calls
from torch_piecewise.cut_policy_names import (
    calls_overload,
    names_of_function,
    node_names,
    readable,
    target_names,
)
from torch_piecewise.cut_policy_resolve import DEFAULT_SPLITTING_OPS, checked_entries, exists, resolve
from torch_piecewise.errors import SplitError
from torch_piecewise.ignoring import is_ignored, runs_in_ignored_call
from torch_piecewise.torch_private.nodes import user_line
from torch_piecewise.torch_private.ops import is_higher_order, op_overload_name

SplittingOp = str | type[Module] | Callable[[Node], bool]
"""One entry of ``Config.splitting_ops``."""


@dataclass(frozen=True)
class Cut:
    """Why a node is a cut.

    Attributes:
        rule: the entry of ``splitting_ops`` that matched, as text.
        group: nodes with one group belong to one call (all nodes of one module call); None for an op.
    """

    rule: str
    group: str | None = None


@dataclass(frozen=True)
class _Rule:
    """One entry of ``splitting_ops``.

    Attributes:
        matches: given a node and all the names it can be meant by.
        is_default: nobody asked for it by name.
        names_module: it is about calls of modules.
        if_unmatched: what people should know where it matches nothing.
    """

    text: str
    matches: Callable[[Node, frozenset[str]], Cut | None]
    is_default: bool = False
    names_module: bool = False
    if_unmatched: str = ""


@dataclass(frozen=True)
class CutPolicy:
    """The resolved splitting ops; asks each node whether it is a cut.

    Make one with :meth:`of`.
    """

    rules: tuple[_Rule, ...] = field(default=())

    @classmethod
    def of(cls, splitting_ops: Sequence[SplittingOp] | None) -> CutPolicy:
        """Resolve entries.

        Args:
            splitting_ops: names, module classes, predicates; None stands for
                :data:`DEFAULT_SPLITTING_OPS`, of which those that this torch lacks are left out. What is
                marked with ``tp.ignore`` is a cut besides.

        Raises:
            SplitError: an entry names nothing that exists.
        """
        if splitting_ops is None:
            known = [name for name in DEFAULT_SPLITTING_OPS if exists(name)]
            return cls((*(_named_rule(name, is_default=True) for name in known), _IGNORED))
        return cls((*map(_rule, checked_entries(splitting_ops)), _IGNORED))

    def cut(self, node: Node) -> Cut | None:
        """Why ``node`` is a cut; None if it is none.

        An operation with graphs of its own (a branch of ``torch.cond``) is one where something in them is:
        what must not be compiled is not compiled with what surrounds it.

        Raises:
            SplitError: a predicate failed.
        """
        if node.op in ("placeholder", "get_attr", "output"):
            return None
        names = node_names(node)
        for rule in self.rules:
            found = rule.matches(node, names)
            if found is not None:
                return found
        inner = (self.cut(one) for body in _bodies(node) for one in body.graph.nodes)
        return next((found for found in inner if found is not None), None)

    def unmatched(self, graph: Graph) -> list[str]:
        """A warning for each entry that matches no node of ``graph``, with what the graph does hold."""
        # Each entry by itself: one that another entry goes before is not one that matches nothing.
        named = [CutPolicy((rule,)) for rule in self.rules if not rule.is_default]
        idle = [policy for policy in named if all(policy.cut(node) is None for node in graph.nodes)]
        return [_unmatched(policy.rules[0], graph) for policy in idle]


def _rule(entry: SplittingOp) -> _Rule:
    if isinstance(entry, str):
        return _named_rule(entry)
    if isinstance(entry, type):
        return _module_rule(f"{entry.__module__}.{entry.__qualname__}", entry)
    predicate: Any = entry
    return _predicate_rule(predicate)


def _predicate_rule(predicate: Callable[[Node], bool]) -> _Rule:
    text = str(getattr(predicate, "__qualname__", repr(predicate)))

    def matches(node: Node, _names: frozenset[str]) -> Cut | None:
        try:
            return Cut(text) if predicate(node) else None
        except Exception as error:
            raise SplitError(
                f"The predicate {text} of splitting_ops failed at the node {node.name}",
                expected="a function (node) -> bool that takes every operation of the graph",
                got=f"{type(error).__name__}: {error}; {node.op} {node.target}, from {user_line(node)}",
            ) from error

    return _Rule(text, matches)


def _named_rule(name: str, *, is_default: bool = False) -> _Rule:
    resolved = resolve(name)
    if isinstance(resolved, type):
        return _module_rule(name, resolved)
    overload = op_overload_name(resolved)
    if overload is not None:
        return _Rule(name, lambda node, _: Cut(name) if calls_overload(node, overload) else None, is_default)
    wanted = names_of_function(resolved, name)
    why = ""
    if isinstance(resolved, FunctionType) and resolved.__module__.partition(".")[0] != "torch":
        why = "a trace goes through Python functions: mark it with tp.ignore, or make it a tp.splitting_op"
    return _Rule(name, lambda _, names: Cut(name) if wanted & names else None, is_default, if_unmatched=why)


def _module_rule(text: str, cls: type[Module]) -> _Rule:
    def matches(node: Node, _names: frozenset[str]) -> Cut | None:
        group = next((group for group, called in module_calls(node) if is_call_of(called, cls)), None)
        return Cut(text, group) if group is not None else None

    return _Rule(text, matches, names_module=True)


def _bodies(node: Node) -> Iterator[GraphModule]:
    if node.op != "call_function" or not is_higher_order(node.target):
        return
    owner = node.graph.owning_module
    for operand in node.all_input_nodes if owner is not None else ():
        if operand.op == "get_attr":
            body = _attribute(owner, str(operand.target))
            if isinstance(body, GraphModule):
                yield body


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part, None)
    return module


_LISTED = 24
"""Names that a warning lists."""


def _unmatched(rule: _Rule, graph: Graph) -> str:
    modules = {_class_text(called) for node in graph.nodes for _, called in module_calls(node)}
    by_dynamo = any("source_fn_stack" in node.meta for node in graph.nodes)
    if rule.names_module and not modules and not by_dynamo:
        return (
            f"splitting op {rule.text!r} cannot be found: this graph does not say which module its "
            "operations come from; cut at operations, or give the graph that Dynamo traced"
        )
    operations = {readable(name) for node in graph.nodes for name in target_names(node)}
    found = modules if (rule.names_module and modules) or not operations else operations
    occurring = sorted(found, key=lambda name: ("::" not in name, name))  # what is meant to be cut at, first
    near = difflib.get_close_matches(rule.text, occurring, n=3, cutoff=0.5)
    hint = f"; near names that do occur: {', '.join(near)}" if near else ""
    why = rule.if_unmatched
    if rule.names_module and not modules:
        why = "every operation is the compiled module's own, or of no module at all"
    if rule.text.startswith("aten::") and not any(name.startswith("aten::") for name in occurring):
        why = "torch functions are taken apart into such operations after the cut: name the function"
    more = f" and {len(occurring) - _LISTED} more" if len(occurring) > _LISTED else ""
    held = ", ".join(occurring[:_LISTED]) or "nothing"
    return (
        f"splitting op {rule.text!r} never occurs in the traced graph, so nothing is cut there{hint}"
        f"{f'; {why}' if why else ''}; the graph holds {held}{more}"
    )


def _class_text(called: object) -> str:
    return f"{called.__module__}.{called.__qualname__}" if isinstance(called, type) else str(called)


def _ignored_matcher(node: Node, _names: frozenset[str]) -> Cut | None:
    if runs_in_ignored_call(node.meta.get("stack_trace")):
        return Cut("tp.ignore")
    for group, called in module_calls(node):
        if isinstance(called, type) and is_ignored(called):
            return Cut("tp.ignore", group)
    return None


_IGNORED = _Rule("tp.ignore", _ignored_matcher, is_default=True)
"""What is marked with ``tp.ignore`` is a cut, whatever the splitting ops are."""
