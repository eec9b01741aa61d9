"""From an entry of ``splitting_ops`` to what it names; an entry that names nothing is an error."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn import Module

from torch_piecewise.config.kinds import Items
from torch_piecewise.config.own_kinds import SplittingOp as Entry
from torch_piecewise.errors import ConfigError, SplitError
from torch_piecewise.torch_private.ops import is_dispatcher_op, op_name, op_overloads

_FORMS = (
    "'ns::op', 'ns::op.overload', or a dotted name such as 'torch.nn.functional.scaled_dot_product_attention'"
)


ATTENTION_KERNELS = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::_scaled_dot_product_attention_math",
)
"""What ``scaled_dot_product_attention`` becomes in an ATen graph."""

DEFAULT_SPLITTING_OPS: tuple[str, ...] = (
    "torch.nn.functional.scaled_dot_product_attention",
    "torch.nn.functional.multi_head_attention_forward",
    "aten::scaled_dot_product_attention",
    *ATTENTION_KERNELS,
    "aten::_native_multi_head_attention",
    # The fast path of nn.TransformerEncoderLayer: a whole layer, its attention among it.
    "aten::_transformer_encoder_layer_fwd",
    "higher_order::flex_attention",
)
"""The attention operations torch knows: what ``splitting_ops=None`` means."""


def checked_entries(splitting_ops: object) -> tuple[Any, ...]:
    """The entries as ``Config`` holds them: operations given as objects by their names.

    Raises:
        SplitError: this is no list, or an entry is of no kind that can be matched.
    """
    try:
        return Items(Entry(), "['mylib::attention']").check("splitting_ops", splitting_ops)
    except ConfigError as error:
        raise SplitError(error.what, expected=error.expected, got=error.got, hint=error.hint) from None


def resolve(name: str) -> Any:
    """What an entry names: an operation, a function, or a module class.

    Raises:
        SplitError: it names nothing, or something that a graph never calls.
    """
    if "::" in name:
        return _operation(name)
    found = _behind(_imported(name))
    if isinstance(found, type) and not issubclass(found, Module):
        kind = "a class that is no module class"
    elif not isinstance(found, str) and not callable(found):
        kind = f"a {type(found).__name__}"
    else:
        return found
    raise SplitError(
        f"Splitting op {name!r} is nothing that a graph calls",
        expected="an operation, a torch function, or a subclass of torch.nn.Module",
        got=kind,
        hint="name the function or the module class that is called there",
    )


def exists(name: str) -> bool:
    """Whether :func:`resolve` finds it."""
    try:
        resolve(name)
    except SplitError:
        return False
    return True


def _behind(value: Any) -> Any:
    """``ns::op`` where ``value`` is an operation under a Python name (``mylib.ops.attention``)."""
    name = getattr(value, "name", None) or getattr(value, "_qualname", None)
    if is_dispatcher_op(value):
        return _operation(op_name(value)) if "::" in op_name(value) else value
    return _operation(name) if isinstance(name, str) and "::" in name else value


def _imported(name: str) -> Any:
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        return _attribute(name, found, parts[:split], parts[split:])
    raise SplitError(
        f"Splitting op {name!r} does not exist",
        expected=_FORMS,
        got=f"no module {parts[0]!r}" if len(parts) > 1 else "a name without '::' or '.'",
    )


def _attribute(name: str, found: Any, home: Sequence[str], path: Sequence[str]) -> Any:
    for index, part in enumerate(path):
        if not hasattr(found, part):
            raise SplitError(
                f"Splitting op {name!r} does not exist",
                expected=f"a function or module class in {'.'.join((*home, *path[:index]))}",
                got=f"no attribute {part!r}",
                hint=near(part, dir(found)),
            )
        found = getattr(found, part)
    return found


def _operation(name: str) -> Any:
    namespace, _, rest = name.partition("::")
    base, _, overload = rest.partition(".")
    home: Any = getattr(torch.ops, namespace)
    found = getattr(home, base, None)
    if found is not None and (not overload or overload in op_overloads(found)):
        return getattr(found, overload) if overload else found
    if found is not None:
        known = op_overloads(found)
        raise SplitError(
            f"Splitting op {name!r} does not exist",
            expected=f"an overload that {namespace}::{base} has: {', '.join(known)}",
            got=repr(overload),
            hint=near(overload, known) or f"name one of them, or {namespace}::{base} for all",
        )
    raise SplitError(
        f"Splitting op {name!r} does not exist",
        expected="an operator that is registered when the model is compiled",
        got=f"torch.ops.{namespace} has no {rest!r}",
        hint=near(base, dir(home)) or "import the module that registers it first, or correct the name",
    )


def near(name: str, names: Iterable[str]) -> str | None:
    """A hint with the names that were probably meant; None where none is near."""
    found = difflib.get_close_matches(name, list(names), n=3)
    return f"did you mean {' or '.join(found)}?" if found else None
