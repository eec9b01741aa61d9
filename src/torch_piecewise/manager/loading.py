"""From what a compiler made, or what was kept of it, to a function that can be called."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch_piecewise.artifact import Artifact
from torch_piecewise.compilers import Compiler
from torch_piecewise.compilers.pass_records import pass_records
from torch_piecewise.errors import CompilerError, ConfigError
from torch_piecewise.events import Bus, PieceCompiled, PieceFailed, PieceLoaded
from torch_piecewise.manager.errors import (
    first_line,
    foreign_artifact,
    no_artifact,
    not_a_tuple,
    not_callable,
    other_outputs,
    piece_error,
    unfit_artifact,
)
from torch_piecewise.manager.units import Ready, Unit
from torch_piecewise.piece import Piece
from torch_piecewise.pool import Outcome

logger = logging.getLogger("torch_piecewise")


class Loading:
    """Holds one compiler to its protocol, and tells what happened.

    Args:
        compiler: what makes and loads the artifacts.
        bus: gets the events.
        eager_on_error: whether a piece that failed runs as it was traced.
    """

    def __init__(self, compiler: Compiler, bus: Bus, *, eager_on_error: bool) -> None:
        self._compiler = compiler
        self._bus = bus
        self._eager_on_error = eager_on_error

    def made(self, unit: Unit, outcome: Outcome) -> Ready:
        """What a compile ended with, ready to be called.

        Raises:
            PieceCompileError: it failed; names piece, range, op and source line.
            CompilerError: the compiler broke its protocol.
        """
        result, seconds, ended = outcome
        if isinstance(result, BaseException):
            return self._failed(unit, result)
        if not isinstance(result, Artifact):
            raise no_artifact(unit, self._compiler.name, result)
        self._check_kinds(unit, result)
        for record in pass_records(result.meta, unit.name, unit.range):
            self._bus.emit(record)
        self._bus.emit(
            PieceCompiled(
                piece=unit.name,
                range=unit.range,
                compiler=self._compiler.name,
                seconds=seconds,
                fingerprint=unit.fingerprint,
                at=ended,
            )
        )
        outputs = None if is_own(self._compiler) else _outputs(unit.piece)
        return self.loaded(unit, result, "compiled", outputs)

    def _check_kinds(self, unit: Unit, artifact: Artifact) -> None:
        if not isinstance(artifact.payload, bytes):
            raise unfit_artifact(unit, self._compiler.name, "payload", artifact.payload)
        for name, content in artifact.files.items():
            if not isinstance(content, bytes | Path):
                raise unfit_artifact(unit, self._compiler.name, f"files[{name!r}]", content)

    def loaded(self, unit: Unit, artifact: Artifact, source: str, outputs: int | None = None) -> Ready:
        """An artifact, ready to be called.

        Args:
            source: as in :class:`~torch_piecewise.events.PieceLoaded`.
            outputs: how many the piece has; None where only its graph would tell, which a start from the
                store does not read.

        Raises:
            CompilerError: the artifact is another compiler's, or this one loads nothing that can be called.
        """
        if artifact.compiler != self._compiler.name:
            raise foreign_artifact(unit, self._compiler.name, artifact)
        start = time.monotonic()
        run = self._compiler.load(artifact)
        if not callable(run):
            raise not_callable(unit, self._compiler.name, run)
        if not is_own(self._compiler):
            run = returning_tuples(run, unit.name, self._compiler.name, outputs)
        self._bus.emit(
            PieceLoaded(
                piece=unit.name,
                range=unit.range,
                compiler=self._compiler.name,
                source=source,
                seconds=time.monotonic() - start,
                fingerprint=unit.fingerprint,
            )
        )
        return Ready(run, artifact)

    def _failed(self, unit: Unit, error: BaseException) -> Ready:
        if not isinstance(error, Exception):
            raise error
        self._bus.emit(
            PieceFailed(
                piece=unit.name,
                range=unit.range,
                reason=first_line(error),
                fingerprint=unit.fingerprint,
            )
        )
        if self._eager_on_error:
            logger.warning("%s %s stays as it is: %s", unit.name, unit.range, first_line(error))
            return Ready(unit.piece.graph.forward, None)
        if isinstance(error, CompilerError | ConfigError):
            raise error  # no fault of the piece
        raise piece_error(unit, self._compiler.name, error) from error


def is_own(compiler: Compiler) -> bool:
    """Whether the compiler is one of this library, whose pieces need no looking after."""
    return type(compiler).__module__.startswith("torch_piecewise.compilers.")


def _outputs(piece: Piece) -> int:
    (output,) = piece.graph.graph.find_nodes(op="output")
    returned = output.args[0]
    return len(returned) if isinstance(returned, tuple | list) else 1


def returning_tuples(
    run: Callable[..., Any], piece: str, compiler: str, outputs: int | None = None
) -> Callable[..., Any]:
    """``run``, checked to return its outputs: a tensor alone would be taken apart row by row.

    Args:
        outputs: how many; None for any number.
    """

    def checked(*inputs: Any) -> Any:
        result = run(*inputs)
        if not isinstance(result, tuple | list):
            raise not_a_tuple(piece, compiler, result)
        if outputs is not None and len(result) != outputs:
            raise other_outputs(piece, compiler, outputs, len(result))
        return result

    return checked
