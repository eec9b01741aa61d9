"""The eager compiler, with artifacts that can be kept: what tests of warm starts use instead of Inductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch_piecewise.artifact import Artifact
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.graph_bytes import from_bytes, to_bytes
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range


class KeptEager:
    """Writes a piece's graph down, and runs what it reads back."""

    name = "tests_kept_eager"
    keeps_artifacts = True
    can_compile_in_worker = False

    def fingerprint(self) -> str:
        return "1"

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        return Artifact(self.name, piece.name, range, to_bytes(piece.graph))

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        run: Callable[..., tuple[Any, ...]] = from_bytes(artifact.payload).forward
        return run
