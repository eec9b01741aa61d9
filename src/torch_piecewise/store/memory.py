"""A store that lives and dies with the process: for tests, and for running without a cache."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from torch_piecewise.store.base import (
    BlobRef,
    Cause,
    Draft,
    Entry,
    Found,
    Hit,
    Miss,
    canonical_json,
    check_key,
    unknown_blob,
)
from torch_piecewise.store.manifest import check_draft


class MemoryBlobs:
    """Blobs in a dictionary."""

    def __init__(self) -> None:
        self._bytes: dict[str, bytes] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._guard = threading.Lock()

    def read(self, ref: BlobRef) -> Found[bytes]:
        data = self._bytes.get(ref.digest)
        return Miss(f"blob {ref.digest[:12]} is not there", Cause.DAMAGED) if data is None else Hit(data)

    def file(self, ref: BlobRef) -> Found[Path]:
        """A temporary file with the bytes; removed with this store."""
        found = self.read(ref)
        if isinstance(found, Miss):
            return found
        with self._guard:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="torch-piecewise-")
            path = Path(self._folder.name) / ref.digest
            if not path.exists():
                path.write_bytes(found.value)
        return Hit(path)

    def write(self, data: bytes) -> BlobRef:
        """Keep ``data``."""
        ref = BlobRef.of(data)
        self._bytes[ref.digest] = bytes(data)
        return ref


class MemoryStore:
    """Entries in a dictionary, with the manners of the store on disk."""

    def __init__(self) -> None:
        self._blobs = MemoryBlobs()
        self._entries: dict[str, Entry] = {}
        self._guard = threading.Lock()

    @property
    def blobs(self) -> MemoryBlobs:
        """The bytes that the entries name."""
        return self._blobs

    def get(self, key: str) -> Found[Entry]:
        with self._guard:
            entry = self._entries.pop(check_key(key), None)
            if entry is None:
                return Miss(f"no entry {key[:12]}")
            self._entries[key] = entry
            return Hit(entry)

    def put(self, key: str, draft: Draft) -> None:
        check_draft(draft)
        check_key(key)
        # What JSON cannot say would fail on disk, so it fails here.
        canonical_json([draft.ingredients, draft.meta])
        blobs = {role: self._keep_blob(content) for role, content in draft.blobs.items()}
        companions = {name: BlobRef.of(text.encode()) for name, text in draft.companions.items()}
        entry = Entry(key, draft.ingredients, blobs, draft.meta, companions, time.time())
        with self._guard:
            self._entries.pop(key, None)
            self._entries[key] = entry

    def _keep_blob(self, content: bytes | BlobRef) -> BlobRef:
        if not isinstance(content, BlobRef):
            return self._blobs.write(content)
        if isinstance(self._blobs.read(content), Miss):
            raise unknown_blob(content)
        return content

    def entries(self) -> Iterator[Entry]:
        """Every entry, the most recently used first."""
        with self._guard:
            newest_first = list(reversed(self._entries.values()))
        yield from newest_first
