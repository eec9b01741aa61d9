"""``use_inductor_graph_partition``: the splitting ops told to Inductor, which cuts its own generated code.

The graph is compiled whole, so Inductor fuses and plans memory across the cuts as far as they allow. Where
static graphs capture pieces, its code calls one function for each part between the cuts, which is captured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch_piecewise.config import Config
from torch_piecewise.cut_policy_resolve import DEFAULT_SPLITTING_OPS, resolve
from torch_piecewise.errors import ConfigError
from torch_piecewise.splitting_ops import SplittingOp
from torch_piecewise.torch_private.ops import find_op


def partition_settings(config: Config) -> dict[str, Any]:
    """Inductor's settings for partitioning under ``config``; empty where it does not partition.

    Raises:
        ConfigError: an entry of ``splitting_ops`` is no operation.
        SplitError: an entry names nothing that exists.
    """
    if not config.use_inductor_graph_partition:
        return {}
    ops = () if config.mode == "trace_once" else partition_ops(config.splitting_ops)
    return {"graph_partition": True, "custom_should_partition_ops": list(ops)}


def captures_partitions(config: Config) -> bool:
    """Whether static graphs stand around Inductor's partitions, which then are functions of their own."""
    return config.use_inductor_graph_partition and config.cudagraph_mode.has_piecewise_cudagraphs()


def partition_ops(splitting_ops: Sequence[str | type | Callable[..., Any]] | None) -> tuple[str, ...]:
    """The names by which Inductor knows the operations to cut at (``ns::op``, ``ns::op.overload``).

    Args:
        splitting_ops: as in ``Config``; None stands for the attention operations torch knows, as Inductor
            sees them: below ``torch.nn.functional``.

    Raises:
        ConfigError, SplitError: as :func:`partition_settings`.
    """
    if splitting_ops is None:
        return tuple(name for name in DEFAULT_SPLITTING_OPS if name.startswith("aten::"))
    for entry in splitting_ops:
        if isinstance(entry, str):
            resolve(entry)  # refuses a name that does not exist
    names = tuple(_name(entry) for entry in splitting_ops)
    return (*names, *(twin for name in names if (twin := _written_in_place(name))))


def _written_in_place(name: str) -> str | None:
    """What Inductor makes of a collective whose input nobody reads any more; None where that is the same."""
    op, _, overload = name.partition(".")
    if not op.startswith("_c10d_functional::") or op.endswith("_"):
        return None
    twin = f"{op}_.{overload}" if overload else f"{op}_"
    try:
        find_op(twin)
    except AttributeError:
        return None
    return twin


def _name(entry: Any) -> str:
    name = entry.name if isinstance(entry, SplittingOp) else entry
    if isinstance(name, str) and "::" in name and not name.startswith("higher_order::"):
        return name
    raise ConfigError(
        "use_inductor_graph_partition cuts at operations only",
        expected="splitting_ops with names such as 'mylib::attention' or 'aten::mm.default'",
        got=repr(entry),
        hint="name the operation, or set use_inductor_graph_partition=False to cut the traced graph",
    )
