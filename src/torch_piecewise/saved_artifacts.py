"""Single artifacts as files that people name: one binary file, or a folder of readable code.

What is loaded from them runs as code, like anything in the store; unlike there, nobody but the user says
where it comes from. A binary file carries its digest and is taken as it was written or not at all. An
unpacked folder is there to be edited: its digests only tell what was edited, and whatever stands there is
used. Both are refused where others could have written to them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch_piecewise.artifact import Artifact
from torch_piecewise.compilers import Compiler, make_compiler
from torch_piecewise.errors import ArgumentError, BundleError, CompilerError, ConfigError
from torch_piecewise.ranges import Range
from torch_piecewise.store.trust import trust_of_this_process

Format = Literal["binary", "unpacked"]

_MAGIC = b"torch-piecewise artifact 1\n"
_LENGTH = struct.Struct("<Q")
_DESCRIPTION = "artifact.json"
_SHOWN = 200
_ANEW = "save it anew: save_artifact(manager.artifact(piece, range), path)"


def save_artifact(
    artifact: Artifact,
    path: str | os.PathLike[str],
    format: Format = "binary",
    *,
    compiler: Compiler | None = None,
) -> None:
    """Write one artifact.

    Args:
        artifact: such as ``CompilerManager.artifact(piece, range)``.
        path: a file, replaced where there is one; for ``"unpacked"`` a folder that is new or empty.
        format: ``"binary"``, one file; or ``"unpacked"``, a folder of code that can be read and edited.
        compiler: of the artifact; None: the one of its name that comes with this library. ``"unpacked"`` asks
            it for the files (``unpack``).

    Raises:
        CompilerError: the artifact lives with the process, or its compiler cannot write it so.
        BundleError: the folder is not empty.
        ArgumentError: ``artifact`` is none.
    """
    _check_format(format)
    if not isinstance(artifact, Artifact):
        raise ArgumentError(
            "save_artifact was given something that is no artifact",
            expected="a torch_piecewise.artifact.Artifact",
            got=f"{artifact!r} ({type(artifact).__name__})"[:_SHOWN],
            hint="manager.artifact(piece, range) gives it; None there means that nothing is compiled or kept",
        )
    if not artifact.is_storable:
        raise CompilerError(
            f"This artifact of {artifact.compiler!r} cannot be written down",
            expected="an artifact made of bytes",
            got=f"a {type(artifact).__name__}, which lives with the process",
            hint="a piece that records gradients is compiled in memory: compile it under torch.no_grad(), "
            "with a compiler that keeps its artifacts (backend='inductor')",
        )
    if format == "unpacked":
        _save_unpacked(artifact, Path(path), compiler or _compiler_of(artifact))
    else:
        _publish(Path(path), _as_binary(artifact))


def load_artifact(
    path: str | os.PathLike[str], format: Format = "binary", *, compiler: Compiler | None = None
) -> Artifact:
    """Read what :func:`save_artifact` wrote; ``compiler.load(artifact)`` makes it callable.

    Args:
        path, format, compiler: as they were given there.

    Returns:
        The artifact; ``meta["edited"]`` names the files of an unpacked one that are not what was written.

    Raises:
        BundleError: nothing is there, it is of the other format, torn, altered or something else; or an edit
            left code that Python cannot read (names file and line).
        UntrustedError: others can write to it; names the command that mends it.
        OSError: it cannot be read.
    """
    _check_format(format)
    place = Path(path)
    _check_is_there(place, format)
    _check_trusted(place, "saved artifact")
    if format == "unpacked":
        return _load_unpacked(place, compiler)
    return _of_binary(place)


def _check_is_there(place: Path, format: Format) -> None:
    expected = "a folder" if format == "unpacked" else "a file"
    expected += f" that save_artifact(artifact, path, {format!r}) wrote"
    if not place.exists():
        raise _unfit(place, expected, "nothing of that name")
    if place.is_dir() != (format == "unpacked"):
        other: Format = "unpacked" if place.is_dir() else "binary"
        got = "a folder" if place.is_dir() else "a file"
        raise _unfit(place, expected, got, f"if it was saved so, load_artifact(path, {other!r})")
    if format == "unpacked" and not (place / _DESCRIPTION).is_file():
        raise _unfit(
            place, expected, f"no {_DESCRIPTION} in it", "name the folder itself, not one above or below"
        )


def _check_format(format: str) -> None:
    if format not in get_args(Format):
        raise CompilerError(
            f"There is no format {format!r} of saved artifacts",
            expected=" or ".join(map(repr, get_args(Format))),
            got=repr(format),
        )


# -- one file


def _as_binary(artifact: Artifact) -> bytes:
    contents = {name: _bytes(content) for name, content in artifact.files.items()}
    described = {**_described(artifact), "files": [[name, len(data)] for name, data in contents.items()]}
    header = json.dumps(described).encode()
    body = b"".join([_LENGTH.pack(len(header)), header, *contents.values(), artifact.payload])
    return _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _of_binary(path: Path) -> Artifact:
    data = path.read_bytes()
    digest, body = data[len(_MAGIC) : len(_MAGIC) + 64], data[len(_MAGIC) + 65 :]
    if not data.startswith(_MAGIC):
        raise _unfit(path, f"a file that begins with {_MAGIC.decode().strip()!r}", "another kind or format")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise _unfit(path, "bytes as they were written", "torn or altered bytes")
    (length,) = _LENGTH.unpack_from(body)
    described = json.loads(body[_LENGTH.size : _LENGTH.size + length])
    at = _LENGTH.size + length
    files: dict[str, bytes] = {}
    for name, size in described["files"]:
        files[name] = body[at : at + size]
        at += size
    return _artifact(described, body[at:], files)


# -- a folder


def _save_unpacked(artifact: Artifact, folder: Path, compiler: Compiler) -> None:
    unpack = getattr(compiler, "unpack", None)
    if unpack is None:
        raise CompilerError(
            f"Compiler {compiler.name!r} has no unpacked format",
            expected="a compiler with unpack(artifact) and pack(artifact, files)",
            got=type(compiler).__name__,
            hint="save it with format='binary'",
        )
    files: Mapping[str, bytes] = unpack(artifact)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BundleError(
            f"{folder} is not empty",
            expected="a new or empty folder",
            hint="name another one: what was edited there would be lost",
        )
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    description = json.dumps({"format": 1, **_described(artifact), "sha256": digests}, indent=1)
    (folder / _DESCRIPTION).write_text(description, encoding="utf-8")


def _load_unpacked(folder: Path, compiler: Compiler | None) -> Artifact:
    try:
        described = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        if described["format"] != 1:
            raise _unfit(folder, "format 1", f"format {described['format']!r}")
        artifact = _artifact(described, b"", {})
        names: dict[str, str] = dict(described["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BundleError):
            raise
        raise _unfit(
            folder, f"an {_DESCRIPTION} as it was written", f"{type(error).__name__}: {error}"
        ) from error
    files = {}
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise _unfit(folder, "files inside the folder", name)
        if not (folder / name).is_file():
            hint = "put it back, or save the artifact anew: artifact.json lists what it is made of"
            raise _unfit(folder, f"the file {name}", "no such file", hint)
        _check_trusted(folder / name, "file of a saved artifact")
        files[name] = (folder / name).read_bytes()
    edited = [name for name, data in files.items() if hashlib.sha256(data).hexdigest() != names[name]]
    made: Any = compiler or _compiler_of(artifact)
    try:
        packed: Artifact = made.pack(artifact, files)
    except SyntaxError as error:
        raise _not_code(folder, error) from error
    return dataclasses.replace(packed, meta={**packed.meta, "edited": edited})


# --


def _compiler_of(artifact: Artifact) -> Compiler:
    try:
        return make_compiler(artifact.compiler)
    except ConfigError as error:
        raise CompilerError(
            f"The compiler of this artifact is not known by its name {artifact.compiler!r}",
            expected="a compiler of this library, or one whose name is the dotted name of its class",
            got=error.got,
            hint="say who it is: compiler=MyCompiler()",
        ) from error


def _described(artifact: Artifact) -> dict[str, Any]:
    return {
        "compiler": artifact.compiler,
        "piece": artifact.piece,
        "range": [artifact.range.start, artifact.range.end],
        "guards": list(artifact.guards),
    }


def _artifact(described: Mapping[str, Any], payload: bytes, files: Mapping[str, bytes]) -> Artifact:
    return Artifact(
        str(described["compiler"]),
        str(described["piece"]),
        Range(*described["range"]),
        payload,
        tuple(map(str, described["guards"])),
        files,
    )


def _bytes(content: bytes | Path) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _check_trusted(path: Path, what: str) -> None:
    trust_of_this_process().check(path, path.stat(), what)


def _publish(path: Path, data: bytes) -> None:
    """Make ``path`` hold ``data``; at every moment others see the old file, or the new one, whole."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)


def _not_code(folder: Path, error: SyntaxError) -> BundleError:
    line = f"{(error.text or '').strip()!r}: " if error.text else ""
    return BundleError(
        f"{folder / str(error.filename)}, line {error.lineno}, is no Python",
        expected="an edit that leaves code which Python can read",
        got=f"{line}{error.msg}",
        hint="mend that line, or save the artifact anew",
    )


def _unfit(path: Path, expected: str, got: str, hint: str | None = None) -> BundleError:
    return BundleError(
        f"{path} holds no artifact that can be used", expected=expected, got=got, hint=hint or _ANEW
    )
