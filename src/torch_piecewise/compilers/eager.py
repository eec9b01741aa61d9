"""The reference: runs each piece as it was traced, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch_piecewise.artifact import Artifact, LiveArtifact
from torch_piecewise.compilers.base import CompileOptions, described
from torch_piecewise.errors import CompilerError
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range


class EagerCompiler:
    """Compiles nothing; bit for bit what the uncompiled model computes."""

    name = "eager"

    def fingerprint(self) -> str:
        return f"eager torch={torch.__version__}"

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        piece = described(piece)
        # Has a graph whose code is written only when it is first wanted write it: until then ``forward`` goes
        # through ``__call__``, which prints a traceback of its own where an operation refuses its inputs.
        _ = piece.graph.code
        return LiveArtifact(self.name, piece.name, range, runnable=piece.graph.forward)

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        return live_runnable(artifact, self.name)


def live_runnable(artifact: Artifact, compiler: str) -> Callable[..., tuple[Any, ...]]:
    """The callable inside a live artifact that ``compiler`` made."""
    if not isinstance(artifact, LiveArtifact) or artifact.compiler != compiler or artifact.runnable is None:
        raise CompilerError(
            f"Compiler {compiler!r} was handed an artifact it did not make in this process",
            expected=f"a live artifact of {compiler!r}",
            got=f"{type(artifact).__name__} of {artifact.compiler!r}",
        )
    return artifact.runnable
