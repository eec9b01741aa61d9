"""The store on disk: JSON manifests that name blobs by their digests.

A manifest is published last, when everything it names is in place, so a crash at any moment leaves the old
entry or the new one, and at most files that nothing names, which a clean-up removes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch_piecewise.store.base import (
    BlobRef,
    Cause,
    Draft,
    Entry,
    Found,
    Hit,
    Miss,
    Namespace,
    check_key,
)
from torch_piecewise.store.blobs import DiskBlobs
from torch_piecewise.store.files import Files, NotAFile, mapped_errors
from torch_piecewise.store.layout import EntryPlace, Layout, used_at
from torch_piecewise.store.locks import Leases
from torch_piecewise.store.manifest import check_draft, decode, encode
from torch_piecewise.store.trust import Trust


@dataclass(frozen=True)
class DiskStore:
    """The entries of one namespace of one root.

    Attributes:
        layout: where things are.
        namespace: which entries are seen.
        files, leases, trust: how files are touched, marked as in use, and judged.
        clock: seconds since the epoch.
    """

    layout: Layout
    namespace: Namespace
    files: Files
    leases: Leases
    trust: Trust
    clock: Callable[[], float] = time.time

    @property
    def blobs(self) -> DiskBlobs:
        """The blobs of the root; the same for every namespace."""
        return DiskBlobs(self.layout, self.files, self.leases, self.trust)

    def in_namespace(self, namespace: Namespace) -> DiskStore:
        """The same root, seen from another namespace."""
        return replace(self, namespace=namespace)

    def get(self, key: str) -> Found[Entry]:
        """The entry, whole and with all its blobs present; it counts as used, and stays while this is open.

        Raises:
            UntrustedError: another user can write to the entry.
            StoreError: the system does not let this process read it.
        """
        place = self._place(key)
        self.leases.take(key)
        found = self._read(place)
        if isinstance(found, Miss):
            return found
        for role, ref in found.value.blobs.items():
            # Reading it says what is wrong, and sets a torn one aside; it may have been mended meanwhile.
            blob = None if self.blobs.has(ref) else self.blobs.read(ref)
            if isinstance(blob, Miss):
                return Miss(f"entry {key[:12]} has lost its blob {role!r}: {blob.reason}", Cause.DAMAGED)
        self.files.touch(place.manifest)
        return found

    def put(self, key: str, draft: Draft) -> None:
        """Keep ``draft``; see :class:`~torch_piecewise.store.base.Store`.

        Raises:
            UntrustedError: another user can write to the place of the entry.
            StoreError: it could not be kept.
        """
        check_draft(draft)
        place = self._place(key)
        self.leases.take(key)
        with mapped_errors("keeping an entry", self.layout.root):
            self._check_trust(place, missing_is_fine=True)
            entry = self._keep_parts(place, draft)
            text = encode(entry, place.namespace)
            self._clear_non_file(place)
            self.files.publish(place.manifest, text)
        self.files.at_step("manifest-published")

    def _keep_parts(self, place: EntryPlace, draft: Draft) -> Entry:
        blobs = {}
        for role, content in draft.blobs.items():
            blobs[role] = self._keep_blob(content)
            self.files.at_step("blob-published")
        companions = {}
        for name, text in draft.companions.items():
            data = text.encode("utf-8", "backslashreplace")
            companions[name] = BlobRef.of(data)
            if not self.files.holds(place.folder / name, data):
                self.files.publish(place.folder / name, data)
            self.files.at_step("companion-published")
        return Entry(
            key=place.key,
            ingredients=draft.ingredients,
            blobs=blobs,
            meta=draft.meta,
            companions=companions,
            created=self.clock(),
        )

    def _keep_blob(self, content: bytes | BlobRef) -> BlobRef:
        if isinstance(content, BlobRef):
            self.blobs.adopt(content)
            return content
        return self.blobs.write(content)

    def _clear_non_file(self, place: EntryPlace) -> None:
        # A file cannot be published in the place of a folder.
        if place.manifest.is_dir():
            self.files.set_aside(place.manifest, None, self.layout.quarantine / "not-a-manifest")

    def entries(self) -> Iterator[Entry]:
        """Every readable entry of the namespace, the most recently used first."""
        places = self.layout.entry_places(self.namespace.folder_name())
        dated = sorted(((used_at(place), place.key, place) for place in places), reverse=True)
        for _, _, place in dated:
            found = self._peek(place)
            if isinstance(found, Hit):
                yield found.value

    def _place(self, key: str) -> EntryPlace:
        return self.layout.entry(self.namespace.folder_name(), check_key(key))

    def _peek(self, place: EntryPlace) -> Found[Entry]:
        with contextlib.suppress(OSError):
            data, _ = self.files.read(place.manifest)
            return decode(data, key=place.key, namespace=place.namespace)
        return Miss("it cannot be read", Cause.UNAVAILABLE)

    def _read(self, place: EntryPlace) -> Found[Entry]:
        what = f"entry {place.key[:12]}"
        with mapped_errors("reading an entry", self.layout.root):
            try:
                data, status = self.files.read(place.manifest)
            except (FileNotFoundError, NotADirectoryError):
                return Miss(f"no {what}")
            except NotAFile:
                return Miss(f"{what}: its manifest is no regular file", Cause.DAMAGED)
            self._check_trust(place, missing_is_fine=False)
            self.trust.check(place.manifest, status)
        found = decode(data, key=place.key, namespace=place.namespace)
        if isinstance(found, Hit):
            return found
        if found.cause is Cause.DAMAGED:
            aside = self.layout.quarantine / f"manifest.{place.key[:12]}"
            self.files.set_aside(place.manifest, status, aside)
        return Miss(f"{what}: {found.reason}", found.cause)

    def _check_trust(self, place: EntryPlace, *, missing_is_fine: bool) -> None:
        """Judge each folder from the root to the entry: who can write to one can exchange what is below."""
        folder = place.folder
        for path in (self.layout.root, self.layout.entries, folder.parent.parent, folder.parent, folder):
            try:
                status = path.stat()
            except FileNotFoundError:
                if missing_is_fine:
                    return
                raise
            self.trust.check(path, status)
