"""What a compiler is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch

from torch_piecewise.artifact import Artifact
from torch_piecewise.call_checks import autocast_state
from torch_piecewise.errors import ArgumentError
from torch_piecewise.passes.context import pass_context
from torch_piecewise.passes.plan import PassPlan
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range


@dataclass(frozen=True)
class Ambient:
    """Settings of torch that a graph depends on without naming them.

    Attributes:
        grad_enabled: whether calls record gradients.
        autocast: ``(device type, dtype)`` of each device that autocast is on for.
        default_dtype: of tensors made without a dtype.
        matmul_precision: as ``torch.set_float32_matmul_precision`` takes it.
        deterministic: whether only deterministic algorithms may run.
        threads: intra-op threads; generated CPU code may depend on their number.
    """

    grad_enabled: bool
    autocast: tuple[tuple[str, torch.dtype], ...]
    default_dtype: torch.dtype
    matmul_precision: str
    deterministic: bool
    threads: int

    @classmethod
    def now(cls) -> Ambient:
        """As torch is set on this thread."""
        return cls(
            torch.is_grad_enabled(),
            autocast_state() or (),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_num_threads(),
        )

    def apply_to_process(self) -> None:
        """Set this whole process so; for processes that do nothing but compile."""
        torch.set_grad_enabled(self.grad_enabled)
        for device in ("cpu", "cuda"):
            torch.set_autocast_enabled(device, enabled=False)
        for device, dtype in self.autocast:
            torch.set_autocast_enabled(device, enabled=True)
            torch.set_autocast_dtype(device, dtype)
        torch.set_default_dtype(self.default_dtype)
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.use_deterministic_algorithms(self.deterministic)
        torch.set_num_threads(self.threads)


@dataclass(frozen=True)
class CompileOptions:
    """What a compiler is told beside the piece and the range.

    Attributes:
        inductor_config: patches for Inductor's configuration; other compilers ignore it.
        passes: graph passes to run on the piece, within ``pass_context`` of its range, which is entered
            already; None for none. Given only to a compiler that says ``runs_passes``.
        ambient: torch's settings, which are in force while the compiler runs.
        partitions: whether Inductor makes functions of its partitions, for static graphs to stand around.
    """

    inductor_config: Mapping[str, Any] = field(default_factory=dict)
    passes: PassPlan | None = None
    ambient: Ambient = field(default_factory=Ambient.now)
    partitions: bool = False

    def for_piece(self, label: str) -> CompileOptions:
        """The same, with the dumps of the passes under ``label``."""
        if self.passes is None or self.passes.debug_dump_path is None:
            return self
        return replace(self, passes=replace(self.passes, dump_label=label))

    def context(self, range: Range) -> AbstractContextManager[object]:
        """What is in force around a compile for ``range``: the pass context."""
        return pass_context(range)


@runtime_checkable
class Compiler(Protocol):
    """Turns pieces into artifacts and artifacts into callables.

    A compiler is a value: it keeps nothing between calls, and may be used from several threads.
    """

    @property
    def name(self) -> str:
        """How configuration, logs and stored artifacts call it."""
        ...

    def fingerprint(self) -> str:
        """Text that changes whenever the same piece could compile to other code (versions, flags)."""
        ...

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        """Compile ``piece`` for every size of its dispatch symbol within ``range``, both ends included.

        Args:
            piece: its ``graph`` is the caller's own and must not be changed.
            range: a single size makes the dispatch symbol a plain number; other symbols stay symbolic.
                Ignored where the piece has no dispatch symbol.
        """
        ...

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        """Make ``artifact`` callable: takes the piece's inputs in order, returns a tuple.

        Raises:
            CompilerError: the artifact is another compiler's, or not what this one writes.
        """
        ...


@runtime_checkable
class Knowing(Protocol):
    """A loaded piece that can leave out checks; what :meth:`Compiler.load` returns may be one."""

    def knowing(self, positions: frozenset[int]) -> Callable[..., tuple[Any, ...]]:
        """The same for a caller that made sure of size and strides of the inputs at ``positions``."""
        ...


def described(piece: object) -> Piece:
    """``piece``, if it is one.

    Raises:
        ArgumentError: it is something else, such as its graph alone.
    """
    if isinstance(piece, Piece):
        return piece
    raise ArgumentError(
        "A compiler takes pieces that are described",
        expected="torch_piecewise.piece.Piece: a graph with its inputs' dtypes and sizes",
        got=f"a {type(piece).__name__}",
        hint="tp.CompilerManager(tp.Config(backend=...)).compile(graph, range, example_inputs) describes it",
    )


def tuning_size(range: Range, hint: int) -> int:
    """The size to tune generated code for: the traced one if it lies in ``range``, else a typical one."""
    if hint in range:
        return hint
    return min(range.end, 2 * range.start) if range.start > hint else range.end
