"""Where things are inside a root; every path is relative to it, so that it can be moved or copied.

::

    CACHEDIR.TAG                                        backup tools skip the folder
    blobs/<2 digits>/<62 digits>                        bytes by their SHA-256
    entries/<namespace>/<2 digits>/<62 digits>/manifest.json, and companions
    quarantine/<name>.<random>                          what did not match its digest
    leases.lock, flights.lock, locks/                   see the locks module
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch_piecewise.store.base import is_digest
from torch_piecewise.store.manifest import FILE_NAME


@dataclass(frozen=True)
class EntryPlace:
    """Where one entry is.

    Attributes:
        namespace: the folder's name (see ``Namespace.folder_name``).
        key: its digest.
        folder: holds the manifest and the companions.
    """

    namespace: str
    key: str
    folder: Path

    @property
    def manifest(self) -> Path:
        """The file that makes it an entry."""
        return self.folder / FILE_NAME


@dataclass(frozen=True)
class Layout:
    """The paths inside ``root``."""

    root: Path

    @property
    def tag(self) -> Path:
        """See the Cache Directory Tagging Specification."""
        return self.root / "CACHEDIR.TAG"

    @property
    def blobs(self) -> Path:
        """Folder of all blobs, shared by all namespaces."""
        return self.root / "blobs"

    @property
    def entries(self) -> Path:
        """Folder of all namespaces."""
        return self.root / "entries"

    @property
    def quarantine(self) -> Path:
        """Folder of what was found damaged."""
        return self.root / "quarantine"

    @property
    def leases(self) -> Path:
        """Lock file of what is in use."""
        return self.root / "leases.lock"

    @property
    def flights(self) -> Path:
        """Lock file of what is being made."""
        return self.root / "flights.lock"

    @property
    def lock_files(self) -> Path:
        """Folder of one lock file per key, where byte locks do not work."""
        return self.root / "locks"

    def blob(self, digest: str) -> Path:
        """Where the blob of that name is."""
        return self.blobs / digest[:2] / digest[2:]

    def entry(self, namespace: str, key: str) -> EntryPlace:
        """Where the entry of that key is."""
        return EntryPlace(namespace, key, self.entries / namespace / key[:2] / key[2:])

    def blob_files(self) -> Iterator[tuple[str, Path]]:
        """Digest and path of every file that is named like a blob."""
        for fan in _folders(self.blobs):
            for path in sorted(_listed(fan)):
                if is_digest(fan.name + path.name):
                    yield fan.name + path.name, path

    def entry_places(self, namespace: str | None = None) -> Iterator[EntryPlace]:
        """Every folder that is named like an entry, of one namespace or of all; it may hold no manifest."""
        spaces = _folders(self.entries) if namespace is None else [self.entries / namespace]
        for space in spaces:
            for fan in _folders(space):
                for folder in _folders(fan):
                    if is_digest(fan.name + folder.name):
                        yield EntryPlace(space.name, fan.name + folder.name, folder)


def used_at(place: EntryPlace) -> float:
    """When the entry was last used, in seconds since the epoch; 0 if it is gone."""
    try:
        return place.manifest.stat().st_mtime
    except OSError:
        return 0.0


def _listed(folder: Path) -> list[Path]:
    # What a clean-up of another process removes meanwhile is simply not there.
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in _listed(folder) if path.is_dir())
