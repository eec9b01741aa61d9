"""Blobs on disk: bytes under the SHA-256 of their content, verified at every read."""

from __future__ import annotations

from pathlib import Path

from torch_piecewise.store.base import BlobRef, Cause, Found, Hit, Miss, unknown_blob
from torch_piecewise.store.files import Files, NotAFile, mapped_errors
from torch_piecewise.store.layout import Layout
from torch_piecewise.store.locks import Leases
from torch_piecewise.store.trust import Trust


class DiskBlobs:
    """The blobs of one root, shared by its namespaces."""

    def __init__(self, layout: Layout, files: Files, leases: Leases, trust: Trust) -> None:
        self._layout = layout
        self._files = files
        self._leases = leases
        self._trust = trust

    def read(self, ref: BlobRef) -> Found[bytes]:
        """The verified bytes of ``ref``.

        Raises:
            StoreError: the system does not let this process read it.
        """
        path = self._layout.blob(ref.digest)
        with mapped_errors("reading a blob", self._layout.root):
            try:
                data, status = self._files.read(path)
            except (FileNotFoundError, NotADirectoryError):
                return Miss(f"blob {ref.digest[:12]} is not there", Cause.DAMAGED)
            except NotAFile:
                return Miss(f"blob {ref.digest[:12]} is no regular file", Cause.DAMAGED)
        if BlobRef.of(data) == ref:
            return Hit(data)
        self._files.set_aside(path, status, self._layout.quarantine / f"blob.{ref.digest[:12]}")
        return Miss(f"blob {ref.digest[:12]} does not match its digest and was set aside", Cause.DAMAGED)

    def file(self, ref: BlobRef) -> Found[Path]:
        """The file of ``ref``, its bytes verified; not evicted while this store is open.

        Raises:
            UntrustedError: another user could exchange the file after it was verified.
        """
        self._leases.take(ref.digest)
        path = self._layout.blob(ref.digest)
        found = self.read(ref)
        if isinstance(found, Miss):
            return found
        with mapped_errors("reading a blob", self._layout.root):
            for part in (self._layout.blobs, path.parent, path):
                self._trust.check(part, part.stat())
        return Hit(path)

    def has(self, ref: BlobRef) -> bool:
        """Whether there is a file of that name and size; its bytes are verified when they are read."""
        try:
            return self._layout.blob(ref.digest).stat().st_size == ref.size
        except OSError:
            return False

    def write(self, data: bytes) -> BlobRef:
        """Keep ``data``; a damaged blob of that name is replaced. From here on this process has it in use.

        Raises:
            OSError: as the system says.
        """
        ref = BlobRef.of(data)
        # In use before it is looked for: otherwise an evictor could remove it before a manifest names it.
        self._leases.take(ref.digest)
        path = self._layout.blob(ref.digest)
        if not self._files.holds(path, data):
            if path.is_dir():
                # A file cannot be published in the place of a folder.
                self._files.set_aside(path, None, self._layout.quarantine / "not-a-blob")
            self._files.publish(path, data)
        self._files.touch(path)
        return ref

    def adopt(self, ref: BlobRef) -> None:
        """Make sure that a blob which a draft only names is there, and stays.

        Raises:
            StoreError: it is not.
        """
        self._leases.take(ref.digest)
        if not self.has(ref):
            raise unknown_blob(ref)
        self._files.touch(self._layout.blob(ref.digest))
