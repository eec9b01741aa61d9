"""Public fakes for tests of code that uses torch-piecewise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch_piecewise.artifact import Artifact
from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.cudagraphs.recorder import GraphRecorder as GraphRecorder
from torch_piecewise.cudagraphs.recorder import Recording as Recording
from torch_piecewise.errors import CompilerError
from torch_piecewise.graph_bytes import from_bytes, to_bytes
from torch_piecewise.passes.context import get_pass_context
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range
from torch_piecewise.store import Flights, MemoryStore, OpenStore


@dataclass(frozen=True)
class CompilerCall:
    """One call of a :class:`RecordingCompiler`.

    Attributes:
        verb: ``"compile"`` or ``"load"``.
        piece: name of the piece.
        range: the sizes it was compiled for.
        context_range: for a compile, what ``tp.get_pass_context()`` answered; else None.
    """

    verb: str
    piece: str
    range: Range
    context_range: Range | None = None


class RecordingCompiler:
    """A compiler whose pieces compute what eager computes, whose artifacts can be kept, and that takes notes.

    ::

        compiler = RecordingCompiler()
        tp.compile(model, backend=compiler)

    Args:
        version: in its fingerprint: artifacts of one version are not another's.
        failing: names of pieces that it fails to compile, with a ``ValueError``.
        name: how it calls itself.
    """

    keeps_artifacts = True

    def __init__(self, version: str = "1", *, failing: Collection[str] = (), name: str = "recording") -> None:
        self.name = name
        self._version = version
        self._failing = frozenset(failing)
        self._calls: list[CompilerCall] = []
        self._lock = threading.Lock()

    @property
    def calls(self) -> tuple[CompilerCall, ...]:
        """Every call so far, oldest first."""
        with self._lock:
            return tuple(self._calls)

    @property
    def compiled(self) -> list[tuple[str, Range]]:
        """Piece and range of each compile, in order."""
        return [(call.piece, call.range) for call in self.calls if call.verb == "compile"]

    @property
    def loaded(self) -> list[tuple[str, Range]]:
        """Piece and range of each load, in order."""
        return [(call.piece, call.range) for call in self.calls if call.verb == "load"]

    def fingerprint(self) -> str:
        """The version."""
        return self._version

    def compile(self, piece: Piece, range: Range, options: CompileOptions) -> Artifact:
        """The piece's graph, written down.

        Raises:
            ValueError: the piece is among ``failing``.
        """
        self._note(CompilerCall("compile", piece.name, range, get_pass_context().compile_range))
        if piece.name in self._failing:
            raise ValueError(f"{piece.name} was to fail")
        return Artifact(self.name, piece.name, range, to_bytes(piece.graph))

    def load(self, artifact: Artifact) -> Callable[..., tuple[Any, ...]]:
        """The graph, read back.

        Raises:
            CompilerError: the artifact is another compiler's.
        """
        if artifact.compiler != self.name:
            raise CompilerError(
                f"Compiler {self.name!r} was handed an artifact it did not make",
                expected=f"an artifact of {self.name!r}",
                got=f"one of {artifact.compiler!r}",
            )
        self._note(CompilerCall("load", artifact.piece, artifact.range))
        run: Callable[..., tuple[Any, ...]] = from_bytes(artifact.payload).forward
        return run

    def _note(self, call: CompilerCall) -> None:
        with self._lock:
            self._calls.append(call)


def memory_store() -> OpenStore:
    """A store that lives in this process: for :meth:`torch_piecewise.CompilerManager.keep_in`."""
    return OpenStore(MemoryStore(), Flights(None))
