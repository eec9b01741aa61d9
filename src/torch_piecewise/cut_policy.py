"""Which nodes are cuts: splitting ops by name, by function, by module class or by predicate."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.nn import Module

from torch_piecewise.errors import SplitError
from torch_piecewise.ignoring import is_ignored, runs_in_ignored_call
from torch_piecewise.torch_private.ops import (
    is_higher_order,
    op_base_name,
    op_name,
    op_overload_name,
    op_overloads,
)

SplittingOp = str | type[Module] | Callable[[Node], bool]
"""One entry of ``Config.splitting_ops``."""

DEFAULT_SPLITTING_OPS: tuple[str, ...] = (
    "torch.nn.functional.scaled_dot_product_attention",
    "torch.nn.functional.multi_head_attention_forward",
    "aten::scaled_dot_product_attention",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::_scaled_dot_product_attention_math",
    "aten::_native_multi_head_attention",
    "higher_order::flex_attention",
)
"""The attention operations torch knows: what ``splitting_ops=None`` means."""


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
    text: str
    matches: Callable[[Node], Cut | None]
    is_default: bool = False


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
            known = [name for name in DEFAULT_SPLITTING_OPS if _exists(name)]
            return cls((*(_rule(entry, is_default=True) for entry in known), _IGNORED))
        return cls((*(_rule(entry) for entry in splitting_ops), _IGNORED))

    def cut(self, node: Node) -> Cut | None:
        """Why ``node`` is a cut; None if it is none."""
        if node.op in ("placeholder", "get_attr", "output"):
            return None
        for rule in self.rules:
            found = rule.matches(node)
            if found is not None:
                return found
        return None

    def unmatched(self, graph: Graph) -> list[str]:
        """A warning for each entry that matches no node of ``graph``, with near names that occur."""
        used = {cut.rule for node in graph.nodes if (cut := self.cut(node)) is not None}
        occurring = sorted({name for node in graph.nodes for name in target_names(node)})
        warnings = []
        for rule in self.rules:
            if rule.is_default or rule.text in used:
                continue
            near = difflib.get_close_matches(rule.text, occurring, n=3, cutoff=0.5)
            hint = f"; near names that do occur: {', '.join(near)}" if near else ""
            warnings.append(f"splitting op {rule.text!r} never occurs in the traced graph{hint}")
        return warnings


def _rule(entry: SplittingOp, *, is_default: bool = False) -> _Rule:
    if isinstance(entry, str):
        return _named_rule(entry, is_default)
    if isinstance(entry, type) and issubclass(entry, Module):
        name = f"{entry.__module__}.{entry.__qualname__}"
        return _Rule(name, _module_matcher(name))
    if callable(entry):
        predicate: Any = entry
        return _predicate_rule(predicate)
    raise SplitError(
        "An entry of splitting_ops is of no kind that can be matched",
        expected="'ns::op', 'ns::op.overload', a dotted function or class name, a module class, a predicate",
        got=repr(entry),
    )


def _predicate_rule(predicate: Callable[[Node], bool]) -> _Rule:
    text = str(getattr(predicate, "__qualname__", repr(predicate)))
    return _Rule(text, lambda node: Cut(text) if predicate(node) else None)


def _named_rule(name: str, is_default: bool) -> _Rule:
    resolved = _resolve(name)
    if isinstance(resolved, type):
        return _Rule(name, _module_matcher(name), is_default)
    wanted = {name}
    if not isinstance(resolved, str):
        wanted |= _function_names(resolved)
    wanted |= _torch_level_names(name)
    return _Rule(name, lambda node: Cut(name) if wanted & target_names(node) else None, is_default)


def _exists(name: str) -> bool:
    try:
        _resolve(name)
    except SplitError:
        return False
    return True


def _resolve(name: str) -> Any:
    if "::" in name:
        return _resolve_op(name)
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        for index, part in enumerate(parts[split:]):
            if not hasattr(value, part):
                raise SplitError(
                    f"Splitting op {name!r} does not exist",
                    expected=f"a function or module class in {'.'.join(parts[: split + index])}",
                    got=f"no attribute {part!r}",
                    hint=_near(part, dir(value)),
                )
            value = getattr(value, part)
        return value
    raise SplitError(
        f"Splitting op {name!r} does not exist",
        expected="'ns::op', 'ns::op.overload', or a dotted name such as "
        "'torch.nn.functional.scaled_dot_product_attention'",
        got=f"no module {parts[0]!r}" if len(parts) > 1 else "a name without '::' or '.'",
    )


def _resolve_op(name: str) -> Any:
    namespace, _, rest = name.partition("::")
    op_name, _, overload = rest.partition(".")
    if namespace == "higher_order":
        found = getattr(torch.ops.higher_order, op_name, None)
        if found is not None:
            return found
    else:
        packet = getattr(getattr(torch.ops, namespace), op_name, None)
        if packet is not None and (not overload or overload in op_overloads(packet)):
            return getattr(packet, overload) if overload else packet
    near = _near(op_name, dir(getattr(torch.ops, namespace)))
    raise SplitError(
        f"Splitting op {name!r} does not exist",
        expected="an operator that is registered when the model is compiled",
        got=f"torch.ops.{namespace} has no {rest!r}",
        hint=near or "import the module that registers it first, or correct the name",
    )


def _near(name: str, names: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(name, list(names), n=3)
    return f"did you mean {' or '.join(near)}?" if near else None


def _function_names(function: Any) -> set[str]:
    names = {_dotted(function)}
    if function is torch.nn.functional.scaled_dot_product_attention:
        names.add("torch._C._nn.scaled_dot_product_attention")
    return names


def _torch_level_names(name: str) -> set[str]:
    """How ``aten::x`` reads in a graph that was traced at torch level: ``torch.x``, ``Tensor.x``."""
    if not name.startswith("aten::") or "." in name:
        return set()
    base = name.removeprefix("aten::")
    return {f"torch.{base}", f"torch._C._nn.{base}", f"torch.Tensor.{base}", f"torch.nn.functional.{base}"}


def target_names(node: Node) -> frozenset[str]:
    """Every name under which a splitting op could mean ``node``."""
    if node.op == "call_method":
        return frozenset((f"torch.Tensor.{node.target}",))
    if node.op != "call_function":
        return frozenset()
    target: Any = node.target
    if is_functionalized(node) and node.args:
        target = node.args[0]
    base = op_base_name(target)
    if base is not None:
        return frozenset(name for name in (base, op_overload_name(target)) if name is not None)
    if is_higher_order(target):
        return frozenset((f"higher_order::{op_name(target)}",))
    return frozenset((_dotted(target),))


def is_functionalized(node: Node) -> bool:
    """Whether ``node`` is a custom op that functionalisation wrapped (``auto_functionalized``)."""
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and name in ("auto_functionalized", "auto_functionalized_v2")


def _dotted(function: Any) -> str:
    module = getattr(function, "__module__", None)
    name = str(getattr(function, "__qualname__", "") or getattr(function, "__name__", repr(function)))
    if module in (None, "builtins") or name.startswith(("_VariableFunctionsClass.", "PyCapsule.")):
        base = name.rpartition(".")[2]
        return f"torch.{base}" if hasattr(torch, base) else f"torch._C._nn.{base}"
    if module == "torch._C._nn":
        return f"torch._C._nn.{name}"
    return f"{module}.{name}"


def _module_matcher(class_name: str) -> Callable[[Node], Cut | None]:
    def matches(node: Node) -> Cut | None:
        for key, (path, cls) in (node.meta.get("nn_module_stack") or {}).items():
            name = cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"
            if name == class_name:
                return Cut(class_name, group=f"{key}:{path}")
        return None

    return matches


def _ignored_matcher(node: Node) -> Cut | None:
    if runs_in_ignored_call(node.meta.get("stack_trace")):
        return Cut("tp.ignore")
    for key, (path, cls) in (node.meta.get("nn_module_stack") or {}).items():
        if isinstance(cls, type) and is_ignored(cls):
            return Cut("tp.ignore", group=f"{key}:{path}")
    return None


_IGNORED = _Rule("tp.ignore", _ignored_matcher, is_default=True)
"""What is marked with ``tp.ignore`` is a cut, whatever the splitting ops are."""
