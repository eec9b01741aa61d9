"""What a manager says when a piece or a compiler fails."""

from __future__ import annotations

from collections.abc import Sequence

from torch_piecewise.artifact import Artifact
from torch_piecewise.errors import (
    ArgumentError,
    CompilerError,
    MissError,
    PassError,
    PieceCompileError,
    PiecewiseError,
)
from torch_piecewise.manager.units import Unit

_SHOWN = 3


def not_a_range(given: object) -> ArgumentError:
    """Sizes were given as something else than a range, such as a pair."""
    match given:
        case (int(start), int(end)):
            hint = f"write tp.Range({start}, {end})"
        case int(size):
            hint = f"write tp.Range({size}, {size})"
        case _:
            hint = "write tp.Range(1, 64), or leave it out to serve every size"
    return ArgumentError(
        "The sizes to compile for are not given as a Range",
        expected="torch_piecewise.Range",
        got=f"{given!r} ({type(given).__name__})",
        hint=hint,
    )


def not_kept(units: Sequence[Unit], misses: Sequence[str]) -> MissError:
    """Pieces would have to be compiled where ``on_miss`` forbids that; ``misses``: why, as far as known."""
    labels = tuple(unit.label for unit in units)
    known = [miss for miss in misses if miss.startswith(labels)]
    reasons = "; ".join(known[-_SHOWN:]) or ", ".join(labels[:_SHOWN])
    more = f"; and {len(units) - _SHOWN} more" if len(units) > _SHOWN else ""
    return MissError(
        f"on_miss='error' and the store lacks {len(units)} of the compiled pieces",
        expected="pieces kept by an earlier start",
        got=reasons + more,
        hint="run once with on_miss='compile' on the same root",
    )


def no_artifact(unit: Unit, compiler: str, result: object) -> CompilerError:
    """The compiler returned something else, such as nothing."""
    return CompilerError(
        f"Compiler {compiler!r} returned no artifact for {unit.name}",
        expected="an Artifact",
        got=repr(result),
        hint="Compiler.compile(piece, range, options) has to return an Artifact",
    )


def not_a_tuple(piece: str, compiler: str, result: object) -> CompilerError:
    """A compiled piece returned something else than its outputs."""
    return CompilerError(
        f"What compiler {compiler!r} made of {piece} returned no tuple",
        expected="a tuple (or list) of the piece's outputs, also where there is one",
        got=type(result).__name__,
        hint="the function that Compiler.load(artifact) returns has to return (output,)",
    )


def other_outputs(piece: str, compiler: str, expected: int, got: int) -> CompilerError:
    """A compiled piece returned more or fewer outputs than it has."""
    return CompilerError(
        f"What compiler {compiler!r} made of {piece} returned {got} outputs",
        expected=f"{expected}, as many as the piece's graph returns, in its order",
        got=f"{got}",
        hint="the function that Compiler.load(artifact) returns has to return every output of the piece",
    )


def unfit_artifact(unit: Unit, compiler: str, what: str, got: object) -> CompilerError:
    """An artifact holds something that cannot be written down."""
    return CompilerError(
        f"Compiler {compiler!r} returned an artifact for {unit.name} that cannot be kept",
        expected=f"{what} of type {'bytes' if what == 'payload' else 'bytes or pathlib.Path'}",
        got=type(got).__name__,
        hint="encode it in Compiler.compile, or return a LiveArtifact(..., runnable=function), "
        "which is not kept",
    )


def foreign_artifact(unit: Unit, compiler: str, artifact: Artifact) -> CompilerError:
    """The artifact is not of the compiler that is to load it."""
    return CompilerError(
        f"Compiler {compiler!r} was handed an artifact it did not make for {unit.name}",
        expected=f"an artifact of {compiler!r}",
        got=f"{type(artifact).__name__} of {artifact.compiler!r}",
        hint="Artifact.compiler has to be the name of the compiler that made it and loads it",
    )


def not_callable(unit: Unit, compiler: str, run: object) -> CompilerError:
    """The compiler's ``load`` returned something else than a function."""
    return CompilerError(
        f"Compiler {compiler!r} loaded nothing that can be called for {unit.name}",
        expected="a callable",
        got=repr(run),
        hint="Compiler.load(artifact) has to return a function of the piece's inputs",
    )


def piece_error(unit: Unit, compiler: str, error: Exception) -> PieceCompileError:
    """A piece failed to compile: names the pass that broke it, else the op and the source line."""
    what = f"{unit.name} failed to compile for sizes {unit.range} with {compiler!r}"
    broken = _pass_error(error)
    if broken is not None:
        return PieceCompileError(
            f"{what}: {broken.what}", expected=broken.expected, got=broken.got, hint=broken.hint
        )
    said = _said_by_cpp_compiler(error)
    if said is not None:
        return PieceCompileError(
            what,
            expected="a C++ compiler that builds Inductor's kernels",
            got=said,
            hint="install g++ or name another compiler with CXX; torch-piecewise doctor looks at it; "
            "on_piece_error='eager' runs pieces uncompiled",
        )
    # Imported for its cost: it loads torch's symbolic shapes, which a start from the store never needs.
    from torch_piecewise.torch_private.blame import blamed

    return PieceCompileError(
        what,
        expected="a piece that the compiler accepts",
        got=f"{type(error).__name__}: {first_line(error)}",
        hint=f"{blamed(error, unit.piece.graph)}; on_piece_error='eager' runs this piece uncompiled",
    )


def first_line(error: BaseException) -> str:
    """What an error says in one line."""
    text = error.what if isinstance(error, PiecewiseError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _said_by_cpp_compiler(error: BaseException | None) -> str | None:
    """What the C++ compiler wrote, or that there is none, if the error is about that."""
    while error is not None:
        # torch._inductor.exc; not imported: the error is there only where Inductor is.
        if type(error).__name__ == "InvalidCxxCompiler":
            return first_line(error)
        if type(error).__name__ == "CppCompileError":
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return next((line for line in lines if "error" in line and line != lines[0]), lines[-1])
        error = getattr(error, "inner_exception", None) or error.__cause__
    return None


def _pass_error(error: BaseException | None) -> PassError | None:
    """The graph pass's error that ``error`` was raised for, if it was."""
    while error is not None and not isinstance(error, PassError):
        error = getattr(error, "inner_exception", None) or error.__cause__
    return error
