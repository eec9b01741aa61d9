"""Private torch names that the fingerprint needs. All of them are in torch 2.11 and in 2.13."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx.graph
from torch import fx

# The three classes of dispatcher callables have no public name (torch.ops hands out instances only);
# torch/_ops.py, unchanged from 2.11 to 2.13.
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket


def is_dispatcher_op(value: object) -> bool:
    """Whether ``value`` is an op overload, a packet of overloads, or a higher-order op."""
    return isinstance(value, OpOverload | OpOverloadPacket | HigherOrderOperator)


def op_schemas(value: object) -> tuple[str, ...] | None:
    """The schema of an overload, or of each overload of a packet, sorted; None for anything else.

    ``OpOverload._schema`` is the only way to an op's schema object from the op itself (2.11, 2.13).
    """
    if isinstance(value, OpOverload):
        return (str(value._schema),)
    if isinstance(value, OpOverloadPacket):
        return tuple(sorted(str(overload._schema) for overload in _overloads(value)))
    return None


def _overloads(packet: OpOverloadPacket) -> list[OpOverload]:
    names = packet.overloads()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return [getattr(packet, name) for name in names]


def op_name(value: object) -> str:
    """``ns::name`` or ``ns::name.overload``; for a packet ``ns::name``; for a higher-order op its name."""
    if isinstance(value, OpOverload | HigherOrderOperator):
        return str(value.name())  # type: ignore[no-untyped-call]  # torch leaves one of the two untyped
    if isinstance(value, OpOverloadPacket):
        # 2.11 and 2.13 have no public spelling with "::" for a packet.
        return str(value._qualified_op_name)
    raise TypeError(f"not an op: {value!r}")


def is_packet(value: object) -> bool:
    """Whether ``value`` stands for all overloads of an op."""
    return isinstance(value, OpOverloadPacket)


def is_higher_order(value: object) -> bool:
    """Whether ``value`` is an op that takes graphs or side-table indices."""
    return isinstance(value, HigherOrderOperator)


def op_argument_names(value: object) -> tuple[str, ...]:
    """Names of an op's arguments in order.

    Of a packet: the names that all its overloads agree on, up to the first that differs. Empty for
    anything that has no schema.
    """
    if isinstance(value, OpOverload):
        return tuple(argument.name for argument in value._schema.arguments)
    if not isinstance(value, OpOverloadPacket):
        return ()
    each = [op_argument_names(overload) for overload in _overloads(value)]
    agreed: list[str] = []
    for names in zip(*each, strict=False):
        if len(set(names)) > 1:
            break
        agreed.append(names[0])
    return tuple(agreed)


def has_plain_calling_convention(graph: fx.Graph) -> bool:
    """Whether a graph takes its placeholders in order and returns its output as it stands.

    ``set_codegen`` is public, but nothing reads back what was set except ``_codegen`` (2.11, 2.13).
    """
    return type(graph._codegen) is torch.fx.graph.CodeGen


def triton_kernel(index: int) -> object:
    """The Triton kernel that ``triton_kernel_wrapper_*`` nodes call ``kernel_idx=index``.

    The index is a place in a table of this process, so it says nothing by itself (2.11, 2.13).

    Raises:
        KeyError: the table has no such kernel.
    """
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table  # only there if it is used

    try:
        return kernel_side_table.get_kernel(index)
    except AssertionError as error:
        raise KeyError(index) from error


def triton_constants(index: int) -> Mapping[str, object]:
    """The constants that ``triton_kernel_wrapper_*`` nodes call ``constant_args_idx=index``.

    Raises:
        KeyError: the table has no such entry.
    """
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table  # only there if it is used

    try:
        constants: Mapping[str, object] = kernel_side_table.get_constant_args(index)
    except AssertionError as error:
        raise KeyError(index) from error
    return constants


def op_base_name(value: object) -> str | None:
    """``ns::name`` of an overload or a packet, the overload left out; None for anything else."""
    if isinstance(value, OpOverload):
        return str(value._schema.name)
    return str(value._qualified_op_name) if isinstance(value, OpOverloadPacket) else None


def op_overload_name(value: object) -> str | None:
    """``ns::name.overload`` of an overload, ``default`` spelled out; None for anything else."""
    return f"{op_base_name(value)}.{value._overloadname}" if isinstance(value, OpOverload) else None


def op_overloads(packet: object) -> list[str]:
    """Names of a packet's overloads; empty for anything else."""
    return (
        [str(op._overloadname) for op in _overloads(packet)] if isinstance(packet, OpOverloadPacket) else []
    )


def op_mutates(value: object) -> bool | None:
    """Whether an op (or some overload of a packet) writes to an argument; None for anything else."""
    if isinstance(value, OpOverload):
        return bool(value._schema.is_mutable)
    if isinstance(value, OpOverloadPacket):
        return any(overload._schema.is_mutable for overload in _overloads(value))
    return None


def _written_places(value: object) -> frozenset[int | str] | None:
    """Positions and names of the arguments that an op writes to; None for anything that has no schema.

    Of a packet: what any of its overloads writes to.
    """
    overloads = [value] if isinstance(value, OpOverload) else []
    if isinstance(value, OpOverloadPacket):
        overloads = _overloads(value)
    if not overloads:
        return None
    return frozenset(
        key
        for overload in overloads
        for position, argument in enumerate(overload._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        for key in (position, argument.name)
    )


def written_operands(node: fx.Node) -> list[fx.Node] | None:
    """The tensors that the op of ``node`` writes to, as its schema says; those inside lists too.

    None for what has no schema: it may write to anything.
    """
    places = _written_places(node.target)
    if places is None:
        return None
    values = [value for at, value in enumerate(node.args) if at in places]
    values += [value for name, value in node.kwargs.items() if name in places]
    found: list[fx.Node] = []
    fx.node.map_arg(values, found.append)
    return found


def one_overload(value: object) -> OpOverload | None:
    """An overload itself, or the first one of a packet; None for anything else."""
    if isinstance(value, OpOverloadPacket):
        return _overloads(value)[0]
    return value if isinstance(value, OpOverload) else None


# The calls that Dynamo writes for ``with torch.autocast(...)`` and ``with torch.no_grad()`` (2.11, 2.13).
ENTER_AUTOCAST = torch.amp.autocast_mode._enter_autocast
EXIT_AUTOCAST = torch.amp.autocast_mode._exit_autocast
SET_GRAD_ENABLED = torch._C._set_grad_enabled


def find_op(name: str) -> object:
    """The op that :func:`op_overload_name` (``ns::name.overload``) or :func:`op_name` names.

    Raises:
        AttributeError: no such op is registered in this process.
    """
    if "::" not in name:
        return getattr(torch.ops.higher_order, name)
    namespace, _, rest = name.partition("::")
    packet_name, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), packet_name)
    return getattr(packet, overload) if overload else packet


def resolved_overload(base: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Which overload of ``ns::op`` the dispatcher takes for these arguments, as ``ns::op.overload``.

    Fake tensors serve; nothing is run. Dynamo asks the same way (2.11, 2.13); there is no public one.

    Returns:
        None where no overload takes them: a torch function has keywords that its operation lacks.
    """
    packet = find_op(base)
    names = op_overloads(packet)
    if len(names) == 1:
        return f"{base}.{names[0]}"
    try:
        return f"{base}.{torch._C._jit_resolve_packet(base, *args, **kwargs)}"
    except RuntimeError:
        return None
