"""Reads ``auto_functionalized`` nodes, and writes the in-place calls they stand for.

``auto_functionalized(op, **kwargs)`` takes the operator's own arguments and returns
``(*returned, *written)``, one item for each argument the operator writes to. ``auto_functionalized_v2``
takes each such argument as a view of one of ``_all_bases`` (``_out_base_index``, ``_out_slice_dim``, ...)
and returns ``(*returned, *bases)``. An operator that returns nothing counts as returning one None.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torch_piecewise.torch_private.passes import OpOverload, is_overload, run_fake, schema_of, writes

_aten = torch.ops.aten


@dataclass(frozen=True)
class View:
    """One written argument: a base, or a view of it.

    Attributes:
        base: which of the call's bases.
        op: makes the view; None where the argument is the base itself.
        args: of ``op``, after the base: numbers and nodes.
    """

    base: int
    op: OpOverload[..., Any] | None = None
    args: tuple[Any, ...] = ()


@dataclass(frozen=True)
class FunctionalizedCall:
    """A functionalized call, taken apart.

    Attributes:
        node: the call.
        op: the operator that writes.
        read: name -> value of the arguments it only reads.
        written: name -> view of a base, a list of views, or None where nothing was given.
        bases: the tensors that would be written, by base index; None where nothing was given.
        results: per base index, the nodes that are its new value.
        returned: per index, the nodes that are what the operator itself returned.
    """

    node: fx.Node
    op: OpOverload[..., Any]
    read: Mapping[str, Any]
    written: Mapping[str, View | list[View | None] | None]
    bases: tuple[fx.Node | None, ...]
    results: tuple[list[fx.Node], ...]
    returned: tuple[list[fx.Node], ...]


def read_call(node: fx.Node) -> FunctionalizedCall | None:
    """Take a functionalized call apart; None if it is of a kind that has to stay."""
    op = node.args[0]
    if not is_overload(op) or not all(_is_element(user) for user in node.users):
        return None
    schema = schema_of(op)
    if any(result.alias_info is not None for result in schema.returns):
        return None
    arguments: dict[str, Any] = dict(node.kwargs)
    names = [argument.name for argument in schema.arguments if writes(argument)]
    second = "_all_bases" in arguments
    bases = (
        tuple(arguments.pop("_all_bases", None) or ()) if second else tuple(arguments[name] for name in names)
    )
    if not bases or not all(base is None or isinstance(base, fx.Node) for base in bases):
        return None
    if second:
        written = {name: _read_argument(name, arguments) for name in names}
    else:
        written = {name: None if arguments.pop(name) is None else View(i) for i, name in enumerate(names)}
    returned = max(1, len(schema.returns))
    items = [_elements(node, index) for index in range(returned + len(bases))]
    if not schema.returns and any(item.users for item in items[0]):
        return None
    return FunctionalizedCall(
        node, op, arguments, written, bases, tuple(items[returned:]), tuple(items[:returned])
    )


def _is_element(user: fx.Node) -> bool:
    return user.target is operator.getitem and isinstance(user.args[1], int) and user.args[1] >= 0


def _elements(node: fx.Node, index: int) -> list[fx.Node]:
    return [user for user in node.users if user.args[1] == index]


def _read_argument(name: str, arguments: dict[str, Any]) -> View | list[View | None] | None:
    if f"_{name}_length" not in arguments:
        return _read_view(f"_{name}", arguments)
    length = arguments.pop(f"_{name}_length")
    return None if length is None else [_read_view(f"_{name}_{i}", arguments) for i in range(length)]


def _read_view(prefix: str, arguments: dict[str, Any]) -> View | None:
    base = arguments.pop(f"{prefix}_base_index")
    if base is None:
        return None
    if arguments.pop(f"{prefix}_alias", None) is not None:
        return View(base)
    for op, names in (
        (_aten.as_strided.default, ("size", "stride", "storage_offset")),
        (_aten.slice.Tensor, ("slice_dim", "slice_start", "slice_end")),
    ):
        if f"{prefix}_{names[0]}" in arguments:
            return View(base, op, tuple(arguments.pop(f"{prefix}_{name}") for name in names))
    return View(base)


def write_call(call: FunctionalizedCall) -> None:
    """Replace the functionalized call by the operator itself, run on the bases."""
    graph = call.node.graph
    with graph.inserting_before(call.node):
        new = graph.call_function(call.op, (), _arguments(call, lambda view: _make_view(graph, call, view)))
        _describe(call, new)
        _hand_over(call, new)
    for base, results in zip(call.bases, call.results, strict=True):
        for result in results:
            if base is not None:
                result.replace_all_uses_with(base)
            graph.erase_node(result)
    graph.erase_node(call.node)


def _arguments(call: FunctionalizedCall, make: Callable[[View], Any]) -> dict[str, Any]:
    """The operator's arguments in the order of its schema, each written one made by ``make``."""
    made: dict[str, Any] = dict(call.read)
    for name, view in call.written.items():
        if isinstance(view, list):
            made[name] = [None if item is None else make(item) for item in view]
        else:
            made[name] = None if view is None else make(view)
    return {item.name: made[item.name] for item in schema_of(call.op).arguments if item.name in made}


def _make_view(graph: fx.Graph, call: FunctionalizedCall, view: View) -> fx.Node | None:
    base = call.bases[view.base]
    if base is None or view.op is None:
        return base
    node = graph.call_function(view.op, (base, *view.args))
    node.meta = {key: value for key, value in call.node.meta.items() if key not in ("val", _EAGER)}
    value = _view_value(view, base.meta.get("val"), fx.map_arg(view.args, lambda arg: arg.meta.get("val")))
    if value is not None:
        node.meta["val"] = value
    return node


def _view_value(view: View, base: Any, args: Any) -> Any:
    """The fake tensor of a view whose bounds are exact, as they are when tracing wrote them down."""
    if view.op is not _aten.slice.Tensor or not isinstance(base, torch.Tensor):
        return run_fake(_aten.as_strided.default, base, args)
    dim, start, end = args
    # As `as_strided`, for `slice` would compare its bounds with the size.
    size, stride = list(base.shape), base.stride()
    size[dim] = end - start
    offset = base.storage_offset() + start * stride[dim]
    return run_fake(_aten.as_strided.default, base, (size, stride, offset))


# Inductor keeps the strides that an operator saw in eager mode here (torch.fx.experimental.proxy_tensor,
# NOTE "eager_input_vals") and gives it inputs with the same strides; lost, it may give it others.
_EAGER = "eager_input_vals"


def _describe(call: FunctionalizedCall, new: fx.Node) -> None:
    new.meta = {key: value for key, value in call.node.meta.items() if key not in ("val", _EAGER)}
    values = call.node.meta.get("val")
    if values is not None:
        several = len(call.returned) > 1
        new.meta["val"] = tuple(values[: len(call.returned)]) if several else values[0]
    if _EAGER in call.node.meta:
        new.meta[_EAGER] = ((), _eager_arguments(call))


def _eager_arguments(call: FunctionalizedCall) -> dict[str, Any]:
    given = call.node.meta[_EAGER][1]
    bases = given["_all_bases"] if "_all_bases" in given else [given[name] for name in call.written]

    def of_view(view: View) -> Any:
        base = bases[view.base]
        if view.op is None or base is None:
            return base
        return _view_value(view, base, fx.map_arg(view.args, lambda arg: arg.meta.get("val")))

    eager = _arguments(call, of_view)
    # Only tensors are written down in eager_input_vals; of all else, what the call has stands.
    known = {name: given[name] for name in call.read if _is_tensors(given.get(name))}
    return {name: fx.map_arg(known.get(name, value), _fake) for name, value in eager.items()}


def _is_tensors(value: Any) -> bool:
    several = value if isinstance(value, (list, tuple)) else [value]
    return bool(several) and all(isinstance(item, torch.Tensor) for item in several)


def _fake(node: fx.Node) -> Any:
    return node.meta.get("val")


def _hand_over(call: FunctionalizedCall, new: fx.Node) -> None:
    """Let readers of what the operator returned read it from the new call."""
    graph = call.node.graph
    for index, items in enumerate(call.returned):
        for item in items:
            if len(call.returned) == 1:
                item.replace_all_uses_with(new)
            else:
                element = graph.call_function(operator.getitem, (new, index))
                element.meta = dict(item.meta)
                item.replace_all_uses_with(element)
            graph.erase_node(item)
