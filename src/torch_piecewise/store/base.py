"""What a store is: values that go in and come out, and the protocols that stores meet.

A store keeps *entries*. An entry has a key (the SHA-256 digest of its ordered, named ingredients), the
ingredients themselves, and *blobs*: bytes by role name. A look-up gives a :class:`Hit` or a
:class:`Miss` with the reason; it never raises for what it finds on disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Generic, Protocol, TypeGuard, TypeVar
from urllib.parse import quote

from torch_piecewise.errors import StoreError

T_co = TypeVar("T_co", covariant=True)

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
"""What JSON can say. Floats are finite."""

Ingredients = Sequence[Json]
"""An ordered list of ``[name, value]``; a value is a scalar or such a list again."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Cause(Enum):
    """Why a look-up found nothing usable."""

    ABSENT = "absent"
    DAMAGED = "damaged"
    FOREIGN = "foreign"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Hit(Generic[T_co]):
    """The store had it. ``Hit(None)`` is a hit."""

    value: T_co


@dataclass(frozen=True, slots=True)
class Miss:
    """The store had nothing that can be used.

    Attributes:
        reason: one line for people: what was looked for and why it does not count.
        cause: the same for code. ``ABSENT``: never put, or evicted. ``DAMAGED``: torn or altered, set
            aside where that was possible. ``FOREIGN``: of another format, or another entry's file.
            ``UNAVAILABLE``: the store itself cannot be read.
    """

    reason: str
    cause: Cause = Cause.ABSENT


Found = Hit[T_co] | Miss


def digest_of(data: bytes) -> str:
    """SHA-256 of ``data`` as 64 hexadecimal digits: the name of a blob."""
    return hashlib.sha256(data).hexdigest()


def is_digest(text: object) -> TypeGuard[str]:
    """Whether ``text`` can be the name of a blob or an entry; nothing else becomes part of a path."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def canonical_json(document: Json) -> bytes:
    """The one spelling of ``document``: ASCII, no spaces, keys sorted; what digests and signatures cover.

    Raises:
        StoreError: the document holds something JSON cannot say (NaN, bytes, an object).
    """
    try:
        text = json.dumps(document, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise StoreError(
            "A document for the store is not JSON",
            expected="None, bool, int, finite float, str, and lists and dicts of these",
            got=str(error),
        ) from error
    return text.encode("ascii")


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A blob by name.

    Attributes:
        digest: SHA-256 of its bytes.
        size: in bytes.
    """

    digest: str
    size: int

    @classmethod
    def of(cls, data: bytes) -> BlobRef:
        """The name that ``data`` has in every store."""
        return cls(digest_of(data), len(data))


@dataclass(frozen=True, slots=True)
class Namespace:
    """Entries of different namespaces never meet, but share blobs.

    Attributes:
        tag: the part of a model, as given to ``set_model_tag``; any text.
        rank, world_size: of ``torch.distributed``; 0 of 1 without it.
    """

    tag: str = "backbone"
    rank: int = 0
    world_size: int = 1

    def folder_name(self) -> str:
        """One path component; different for different namespaces, safe on every file system."""
        tag = quote(self.tag, safe=" ").replace(".", "%2E").replace("~", "%7E").replace(" ", "%20")
        if len(tag) > 100:
            tag = f"{tag[:60]}%{digest_of(self.tag.encode('utf-8', 'surrogatepass'))[:32]}"
        return f"{tag}@{self.rank}of{self.world_size}"


@dataclass(frozen=True)
class Draft:
    """An entry about to be kept.

    Attributes:
        ingredients: what its key was made of, as JSON; kept for explaining later misses.
        blobs: role name -> the bytes, or the name of a blob that this store already has.
        meta: small JSON facts; kept in the manifest, never part of the key.
        companions: file name -> text for people, written beside the manifest and never read back.
    """

    ingredients: Ingredients
    blobs: Mapping[str, bytes | BlobRef] = field(default_factory=dict)
    meta: Mapping[str, Json] = field(default_factory=dict)
    companions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """An entry as kept.

    Attributes:
        key: 64 hexadecimal digits.
        ingredients, meta: as in its :class:`Draft`.
        blobs: role name -> name of the blob.
        companions: file name -> name of the text as it was written.
        created: seconds since the epoch.
    """

    key: str
    ingredients: Ingredients
    blobs: Mapping[str, BlobRef]
    meta: Mapping[str, Json]
    companions: Mapping[str, BlobRef]
    created: float


class Blobs(Protocol):
    """Bytes by the digest of their content."""

    def read(self, ref: BlobRef) -> Found[bytes]:
        """The bytes, verified against ``ref``; a mismatch is a miss and is set aside."""
        ...

    def file(self, ref: BlobRef) -> Found[Path]:
        """A file that holds the verified bytes and stays while this store is open; not to be written to."""
        ...


class Store(Protocol):
    """Entries by key. Implementations: disk, memory; read-only and degrading are wrappers."""

    @property
    def blobs(self) -> Blobs:
        """The bytes that the entries name."""
        ...

    def get(self, key: str) -> Found[Entry]:
        """The entry, all its blobs being present. It stays while this store is open."""
        ...

    def put(self, key: str, draft: Draft) -> None:
        """Keep ``draft``, in place of any other entry of that key. All or nothing.

        Raises:
            StoreError: it could not be kept; says why and how to mend it.
        """
        ...

    def entries(self) -> Iterable[Entry]:
        """Every readable entry of this namespace, the most recently used first; none counts as used."""
        ...


def check_key(key: str) -> str:
    """``key``, if it can be one.

    Raises:
        StoreError: it is not a digest.
    """
    if not is_digest(key):
        raise StoreError("A key of the store is malformed", expected="64 hexadecimal digits", got=repr(key))
    return key


def unknown_blob(ref: BlobRef) -> StoreError:
    """The error for a draft that names a blob which is not there (any more)."""
    error = StoreError(
        f"An entry names blob {ref.digest[:12]}, which is not in the store",
        expected="a blob that was put before",
        hint="put the bytes instead of the name",
    )
    # With a number of the system: it may have been evicted meanwhile, which is nobody's programming error.
    error.errno = errno.ENOENT
    return error
