"""What a compiler is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch_piecewise.artifact import Artifact
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range


@dataclass(frozen=True)
class CompileOptions:
    """What a compiler is told beside the piece and the range.

    Attributes:
        inductor_config: patches for Inductor's configuration; other compilers ignore it.
        grad_enabled: whether the piece is compiled for calls that record gradients.
        threads: intra-op threads the piece will run with; generated code may depend on it.
    """

    inductor_config: Mapping[str, Any] = field(default_factory=dict)
    grad_enabled: bool = False
    threads: int = 1


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


def tuning_size(range: Range, hint: int) -> int:
    """The size to tune generated code for: the traced one if it lies in ``range``, else a typical one."""
    if hint in range:
        return hint
    return min(range.end, 2 * range.start) if range.start > hint else range.end
