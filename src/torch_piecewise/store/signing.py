"""Signatures over manifests, so that a bundle from elsewhere can be told from one of our own.

HMAC-SHA256 with a key file. The digests in a manifest bind the blobs, so a signature over the manifest's
canonical bytes covers the whole bundle.
"""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import hmac
import os
import secrets
import shlex
import stat
from dataclasses import dataclass, field
from pathlib import Path

from torch_piecewise.errors import StoreError, UntrustedError
from torch_piecewise.store.base import Json, canonical_json
from torch_piecewise.store.files import mapped_errors

_PURPOSE = b"torch-piecewise signature 1\n"
_KEY_ID_PURPOSE = b"torch-piecewise key id 1\n"
_KEY_BYTES = 32
_PREFIX = "hmac-sha256"
_MAKE = "python -c 'import secrets; print(secrets.token_hex(32))'"


@dataclass(frozen=True)
class SigningKey:
    """A shared secret that signs and verifies.

    Attributes:
        secret: 32 bytes; not in the repr.
    """

    secret: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        """Eight digits that name the key without giving it away; part of each signature."""
        return hmac.new(self.secret, _KEY_ID_PURPOSE, hashlib.sha256).hexdigest()[:8]

    def sign(self, document: Json) -> str:
        """The signature of a JSON document: ``hmac-sha256:<key id>:<64 digits>``."""
        return f"{_PREFIX}:{self.key_id}:{self._mac(document)}"

    def verify(self, document: Json, signature: str | None, *, what: str = "bundle") -> None:
        """Pass, or refuse.

        Args:
            signature: as :meth:`sign` made it; None where there is none, which is refused.
            what: the thing's name, for the message.

        Raises:
            UntrustedError: unsigned, signed with another key, or altered since.
        """
        expected = f"a signature by key {self.key_id}"
        if signature is None:
            raise UntrustedError(
                f"The {what} is not signed, and a signing key is configured",
                expected=expected,
                got="no signature",
                hint="sign it with this key, or start without a key if you trust where it came from",
            )
        if hmac.compare_digest(signature.encode("utf-8", "replace"), self.sign(document).encode()):
            return
        parts = signature.split(":")
        if len(parts) != 3 or parts[0] != _PREFIX:
            got = "a signature of another kind"
        elif parts[1] != self.key_id:
            got = f"a signature by key {parts[1][:8]!r}"
        else:
            got = "a signature by that key over something else: it was altered"
        raise UntrustedError(
            f"The {what} is wrongly signed",
            expected=expected,
            got=got,
            hint="do not load it; get it again from where it was made",
        )

    def _mac(self, document: Json) -> str:
        return hmac.new(self.secret, _PURPOSE + canonical_json(document), hashlib.sha256).hexdigest()


def new_key_file(path: Path) -> SigningKey:
    """Make a key file that only this user can read: 64 hexadecimal digits.

    Raises:
        StoreError: it exists, or cannot be made.
    """
    secret = secrets.token_bytes(_KEY_BYTES)
    with mapped_errors(f"making the key file {path}", path.parent):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secret.hex() + "\n")
    return SigningKey(secret)


def load_key_file(path: Path) -> SigningKey:
    """The key in a file made by :func:`new_key_file`.

    Raises:
        UntrustedError: others can read or change the file.
        StoreError: it cannot be read, or holds no key.
    """
    try:
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()))
            text = file.read(1024).strip()
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"The key file {path} cannot be read",
            expected=f"a file with {2 * _KEY_BYTES} hexadecimal digits",
            got=error.strerror or str(error),
            hint=f"check the path; a new key is made with: {_MAKE}",
        ) from error
    secret = b""
    with contextlib.suppress(binascii.Error):
        secret = binascii.unhexlify(text)
    if len(secret) != _KEY_BYTES:
        raise StoreError(
            f"The key file {path} holds no key",
            expected=f"{2 * _KEY_BYTES} hexadecimal digits",
            got=f"{len(text)} bytes of something else",
            hint=f"make one: {_MAKE}",
        )
    return SigningKey(secret)


def _check_private(path: Path, status: os.stat_result) -> None:
    if not hasattr(os, "geteuid"):
        return
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise UntrustedError(
            f"The key file {path} is not private",
            expected="mode 0600: read and written by its owner only",
            got=f"mode {mode:04o}",
            hint=f"chmod 600 {shlex.quote(str(path))}; and make a new key if others may have read this one",
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise UntrustedError(
            f"The key file {path} belongs to another user",
            expected=f"user {os.geteuid()} or root",
            got=f"user {status.st_uid}",
            hint=f"chown {os.geteuid()} {shlex.quote(str(path))}",
        )
