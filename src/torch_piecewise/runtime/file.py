"""A bundle as a file: a zip of a manifest and of what the manifest lists, each with its digest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from torch_piecewise.errors import BundleError, BundleFileError, PiecewiseError

FORMAT = "torch-piecewise bundle 4"
MANIFEST, SIGNATURE = "manifest.json", "signature"
_MALFORMED = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
)
_LIMIT = 1 << 26
"""Bytes of a manifest at most; what it lists says its own size."""

Verify = Callable[[Any, str | None], None]
"""Given the manifest's document and the signature, if there is one: passes or raises."""


@dataclass(frozen=True)
class BundleFile:
    """A bundle that was read whole and found intact.

    Attributes:
        manifest: the document.
        members: name -> bytes of everything it lists.
    """

    manifest: Mapping[str, Any]
    members: Mapping[str, bytes]

    def text(self, name: str) -> str:
        """One member as text."""
        return self.members[name].decode("utf-8")


def digest(content: bytes) -> str:
    """How members are identified."""
    return hashlib.sha256(content).hexdigest()


def write_bundle(
    path: Path, manifest: Mapping[str, Any], members: Mapping[str, bytes], sign: Callable[[Any], str | None]
) -> None:
    """Write a bundle whole or not at all: beside ``path`` first, then renamed.

    Args:
        manifest: all but the list of members.
        sign: the signature of the manifest's document; None for none.

    Raises:
        BundleFileError: it cannot be written; says why.
    """
    listed = {name: {"sha256": digest(data), "bytes": len(data)} for name, data in sorted(members.items())}
    document = {"format": FORMAT, **manifest, "members": listed}
    signature = sign(document)
    check_place(path)
    sibling = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with sibling.open("xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(_entry(MANIFEST), _text(document))
                if signature is not None:
                    archive.writestr(_entry(SIGNATURE), signature)
                for name, data in members.items():
                    archive.writestr(_entry(name), data)
            file.flush()
            os.fsync(file.fileno())
        sibling.replace(path)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error), error.errno) from error
    finally:
        with contextlib.suppress(OSError):  # what went wrong is said already
            sibling.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Refuse a path that no file can be written to, as far as that can be told beforehand.

    Raises:
        BundleFileError: says why.
    """
    if path.is_dir():
        raise _unwritable(path, f"{path} is a folder", errno.EISDIR)
    if not path.parent.is_dir():
        raise _unwritable(path, f"no folder {path.parent}", errno.ENOENT)
    if not os.access(path.parent, os.W_OK):
        raise _unwritable(path, f"{path.parent} is not for this user to write to", errno.EACCES)


def _unwritable(path: Path, got: str, number: int | None) -> BundleFileError:
    refusal = BundleFileError(
        f"The bundle {path} cannot be written",
        expected="a path in a folder that exists and that this user may write to",
        got=got,
        hint="make the folder, or name another path",
    )
    refusal.errno = number
    return refusal


@contextlib.contextmanager
def opened(path: Path, what: str, expected: str) -> Iterator[IO[bytes]]:
    """The file, open for reading.

    Raises:
        BundleFileError: it cannot be opened, or the system fails to read it in the block.
    """
    try:
        with path.open("rb") as file:
            yield file
    except PiecewiseError:
        raise
    except OSError as error:
        refusal = BundleFileError(
            f"The {what} {path} cannot be read",
            expected=expected,
            got=error.strerror or str(error),
            hint="check the path, and that this user may read it",
        )
        refusal.errno = error.errno
        raise refusal from error


def _text(document: Mapping[str, Any]) -> str:
    """JSON with a line for each part: a part may have thousands of rows."""
    parts = (f"{json.dumps(name)}: {json.dumps(document[name], sort_keys=True)}" for name in sorted(document))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _entry(name: str) -> zipfile.ZipInfo:
    # A fixed time: the same model baked twice gives the same bytes.
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


def read_bundle(path: Path, verify: Verify) -> BundleFile:
    """Read a bundle; nothing of it has run when this returns.

    Raises:
        BundleError: it is no bundle, damaged, or holds what it does not list.
        BundleFileError: it cannot be read.
        UntrustedError: ``verify`` refuses it.
    """
    with opened(path, "bundle", "a file that tp.bake wrote") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _read(path, archive, verify)
        except PiecewiseError:
            raise
        except Exception as error:
            if not _is_damage(error):
                raise
            raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _is_damage(error: Exception) -> bool:
    """Whether ``error`` comes from the bytes that were read."""
    if isinstance(error, OSError):
        return error.errno == errno.EINVAL  # a place in the file that cannot be
    # zlib and struct raise errors of their own on damaged bytes.
    return isinstance(error, _MALFORMED) or type(error).__module__ in ("zlib", "struct", "_struct")


def _read(path: Path, archive: zipfile.ZipFile, verify: Verify) -> BundleFile:
    names = [entry.filename for entry in archive.infolist()]
    for name in names:
        if not _is_plain(name) or names.count(name) > 1:
            raise _damaged(path, f"a member named {name!r}")
    if MANIFEST not in names:
        raise _damaged(path, f"no {MANIFEST} in it")
    document = json.loads(_limited(path, archive, MANIFEST, _LIMIT))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        got = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise BundleError(
            f"{path} is a bundle of another format",
            expected=FORMAT,
            got=str(got),
            hint="bake it again with this version of the library",
        )
    signature = _limited(path, archive, SIGNATURE, 4096).decode("ascii") if SIGNATURE in names else None
    verify(document, signature)
    listed = document.get("members")
    if not isinstance(listed, dict):
        raise _damaged(path, "a manifest without a list of members")
    strange = sorted(set(names) ^ {*listed, MANIFEST, *([SIGNATURE] if signature is not None else [])})
    if strange:
        place = "not in the manifest" if strange[0] in names else "missing"
        raise _damaged(path, f"the member {strange[0]!r} is {place}")
    members = {name: _checked(path, archive, name, facts) for name, facts in listed.items()}
    return BundleFile(document, members)


def _is_plain(name: str) -> bool:
    """Whether it is a name that could never lead out of a folder."""
    parts = name.split("/")
    return name.isprintable() and not set(name) & set("\\:") and not {"", ".", ".."} & set(parts)


def _checked(path: Path, archive: zipfile.ZipFile, name: str, facts: Any) -> bytes:
    content = _limited(path, archive, name, int(facts["bytes"]))
    if digest(content) != facts["sha256"]:
        raise _damaged(path, f"the bytes of {name!r} are not those that were baked")
    return content


def _limited(path: Path, archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as member:
        content = member.read(limit + 1)
        if len(content) > limit:
            raise _damaged(path, f"{name!r} is larger than {limit} bytes")
        # The archive's own check sum is compared where the end is read.
        member.read(1)
    return content


def _damaged(path: Path, got: str) -> BundleError:
    return BundleError(
        f"{path} is no intact bundle",
        expected="the file as tp.bake wrote it",
        got=got,
        hint="copy it again from where it was made, or bake it again",
    )
