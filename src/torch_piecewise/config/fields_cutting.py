"""How a model is cut, and what compiles its pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch_piecewise.config.fields_setting import setting
from torch_piecewise.config.kinds import Bool, Choice, Items, OrNone
from torch_piecewise.config.own_kinds import CompilerChoice, SplittingOp


@dataclass(frozen=True, kw_only=True, repr=False)
class ProgramFields:
    """How the model becomes a program."""

    mode: str = field(
        default="piecewise",
        metadata=setting(
            Choice(("none", "stock_torch_compile", "trace_once", "piecewise")),
            "What is done with the model: 'none' runs it eagerly; 'stock_torch_compile' hands it to plain "
            "torch.compile, with backend, inductor_compile_config and the dynamic dims (the size of each is "
            "then torch's 'backed' or 'unbacked'); 'trace_once' traces it once and compiles it uncut; "
            "'piecewise' also cuts it.",
            "api",
        ),
    )
    backend: str | Any = field(
        default="inductor",
        metadata=setting(
            CompilerChoice(("inductor", "inductor_memory", "eager", "aot_inductor")),
            "What compiles a piece: 'inductor' (artifacts that can be kept), 'inductor_memory' (compile_fx, "
            "nothing kept), 'aot_inductor' (shared objects that start without a compiler), 'eager' (the "
            "reference), the dotted name of a class that meets the Compiler protocol, or an instance of one.",
            "backend",
        ),
    )
    splitting_ops: Sequence[str | type | Callable[..., Any]] | None = field(
        default=None,
        metadata=setting(
            OrNone(Items(SplittingOp(), "['mylib::attention']")),
            "Where the graph is cut: operations ('ns::op', 'ns::op.overload'), torch functions or module "
            "classes by dotted name, module classes, or predicates on a node. One operation is one thing "
            "however the model spells it: 'torch.matmul' is also x @ y, and 'aten::relu' also x.relu(). A "
            "module class is cut around every call of one, and of one derived from it. A name that does not "
            "exist is an error; one that never occurs is a warning with what the graph holds. None: the "
            "attention operations torch knows. Empty: do not cut.",
            "splitting",
        ),
    )
    use_inductor_graph_partition: bool = field(
        default=False,
        metadata=setting(
            Bool(),
            "Inductor partitions its own code instead of the graph being cut: the graph is one piece, and "
            "Inductor is told the splitting_ops, which have to be operations. With a cudagraph_mode that "
            "captures pieces, each partition is captured.",
            "inductor_partition",
        ),
    )
