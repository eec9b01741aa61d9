"""Looks over a root without changing it: what is in it, and whether each file is what it should be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch_piecewise.store.base import BlobRef, Cause, Entry, Found, Hit, Miss
from torch_piecewise.store.files import Files
from torch_piecewise.store.layout import EntryPlace, Layout, used_at
from torch_piecewise.store.manifest import decode


@dataclass(frozen=True)
class Listed:
    """One entry of a root.

    Attributes:
        namespace: as a folder name, ``tag@rank of world``.
        found: the entry, or why its manifest cannot be used.
        size: bytes of its manifest and companions, and of its blobs, which others may share.
        used_at: seconds since the epoch.
    """

    namespace: str
    key: str
    found: Found[Entry]
    size: int
    used_at: float


@dataclass(frozen=True)
class Problem:
    """A file that is not what it should be.

    Attributes:
        path: relative to the root.
        what: one line.
        harmful: False where nothing ever reads the file (a companion).
    """

    path: str
    what: str
    harmful: bool = True


@dataclass(frozen=True)
class Verdict:
    """What :func:`verify` found.

    Attributes:
        entries, blobs: how many were looked at.
    """

    entries: int
    blobs: int
    problems: tuple[Problem, ...]


def listed(layout: Layout, files: Files) -> list[Listed]:
    """Every entry of every namespace, the most recently used first."""
    found = [_listed(place, layout, files) for place in layout.entry_places() if place.manifest.exists()]
    return sorted(found, key=lambda entry: entry.used_at, reverse=True)


def read_entry(place: EntryPlace, files: Files) -> Found[Entry]:
    """The entry at ``place``; does not count as a use, and moves nothing."""
    try:
        data, _ = files.read(place.manifest)
    except OSError as error:
        return Miss(f"its manifest cannot be read: {error.strerror or error}", Cause.UNAVAILABLE)
    return decode(data, key=place.key, namespace=place.namespace)


def verify(layout: Layout, files: Files) -> Verdict:
    """Read every file of the root and compare it with its digest."""
    problems: list[Problem] = []
    blobs = dict(layout.blob_files())
    for digest, path in blobs.items():
        problems += _check(path, BlobRef(digest, -1), layout, files, "its bytes are not what its name says")
    places = [place for place in layout.entry_places() if place.manifest.exists()]
    for place in places:
        problems += _check_entry(place, layout, files)
    return Verdict(len(places), len(blobs), tuple(problems))


def _listed(place: EntryPlace, layout: Layout, files: Files) -> Listed:
    found = read_entry(place, files)
    paths = [place.manifest]
    if isinstance(found, Hit):
        paths += [place.folder / name for name in found.value.companions]
        paths += [layout.blob(digest) for digest in {ref.digest for ref in found.value.blobs.values()}]
    return Listed(place.namespace, place.key, found, sum(map(_size, paths)), used_at(place))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _check_entry(place: EntryPlace, layout: Layout, files: Files) -> Iterator[Problem]:
    found = read_entry(place, files)
    if isinstance(found, Miss):
        yield Problem(str(place.manifest.relative_to(layout.root)), found.reason)
        return
    for role, ref in found.value.blobs.items():
        path = layout.blob(ref.digest)
        if _size(path) != ref.size or not path.exists():
            where = str(place.manifest.relative_to(layout.root))
            yield Problem(where, f"blob {role!r} ({ref.digest[:12]}) is missing or of another size")
    for name, ref in found.value.companions.items():
        # A lost one is nothing to report: nobody reads it, and a clean-up removes what a crash left.
        if (place.folder / name).exists():
            for problem in _check(place.folder / name, ref, layout, files, "it is not what was written"):
                yield Problem(problem.path, problem.what, harmful=False)


def _check(path: Path, ref: BlobRef, layout: Layout, files: Files, wrong: str) -> Iterator[Problem]:
    where = str(path.relative_to(layout.root))
    try:
        data, _ = files.read(path)
    except OSError as error:
        yield Problem(where, f"it cannot be read: {error.strerror or error}")
        return
    if BlobRef.of(data).digest != ref.digest:
        yield Problem(where, wrong)
