"""The manifest of an entry as JSON text, and back; whatever does not fit becomes a reason, never an error.

The text is one JSON object of two lines. The last line holds the SHA-256 of every byte before it, so a
changed byte is found before anything is parsed::

    {"body": {"format": 1, "key": "...", "namespace": "...", "ingredients": [...], "blobs": {...}, ...},
    "sha256": "..."}
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch_piecewise.errors import StoreError
from torch_piecewise.store.base import (
    BlobRef,
    Cause,
    Draft,
    Entry,
    Found,
    Hit,
    Ingredients,
    Miss,
    canonical_json,
    is_digest,
)

T = TypeVar("T")

FORMAT = 1
"""Goes up when the meaning of a manifest changes; other formats are misses and are left alone."""

FILE_NAME = "manifest.json"

_COMPANION = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
_TAIL = re.compile(rb'\n"sha256":"([0-9a-f]{64})"}\n')
_TAIL_LENGTH = len(b'\n"sha256":""}\n') + 64
_DIGEST_IN_TEXT = re.compile(rb'"([0-9a-f]{64})"')


def encode(entry: Entry, namespace: str) -> bytes:
    """The text of ``entry``'s manifest."""
    body = canonical_json(
        {
            "format": FORMAT,
            "key": entry.key,
            "namespace": namespace,
            "created": entry.created,
            "ingredients": entry.ingredients,
            "blobs": _refs_as_json(entry.blobs),
            "meta": entry.meta,
            "companions": _refs_as_json(entry.companions),
        }
    )
    head = b'{"body":' + body + b","
    return head + b'\n"sha256":"%s"}\n' % hashlib.sha256(head).hexdigest().encode("ascii")


def decode(data: bytes, *, key: str, namespace: str) -> Found[Entry]:
    """The entry in ``data``, if it is whole, of our format, and the one asked for."""
    tail = _TAIL.fullmatch(data[-_TAIL_LENGTH:]) if len(data) > _TAIL_LENGTH else None
    if tail is None:
        return Miss("its manifest is torn or not a manifest", Cause.DAMAGED)
    head = data[:-_TAIL_LENGTH]
    if hashlib.sha256(head).hexdigest() != tail.group(1).decode("ascii"):
        return Miss("its manifest does not match its own checksum", Cause.DAMAGED)
    try:
        document = json.loads(data)
        entry = _entry_of(document["body"], key, namespace)
    except _Unfit as unfit:
        return Miss(f"its manifest {unfit}", Cause.FOREIGN)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Miss(f"its manifest is mistyped ({type(error).__name__}: {error})", Cause.FOREIGN)
    return Hit(entry)


def is_torn(data: bytes) -> bool:
    """Whether ``data`` is no manifest of this or a later format: those are whole JSON."""
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return True
    return False


def digests_named_in(data: bytes) -> set[str]:
    """Every digest that ``data`` names, whatever its format: a clean-up spares more rather than less."""
    return {match.decode("ascii") for match in _DIGEST_IN_TEXT.findall(data)}


def check_draft(draft: Draft) -> None:
    """Refuse what :func:`decode` would not take back.

    Raises:
        StoreError: a name or value cannot be kept; says which.
    """
    for name in draft.companions:
        if not _is_companion(name):
            raise StoreError(
                "A companion file's name cannot be used",
                expected=f"letters, digits and _.- ; not {FILE_NAME}",
                got=repr(name),
            )
    try:
        _ingredients(draft.ingredients)
        _typed(dict(draft.meta), dict, "meta")
    except _Unfit as unfit:
        raise StoreError(f"An entry for the store {unfit}") from unfit


class _Unfit(Exception):
    pass


def _entry_of(value: object, key: str, namespace: str) -> Entry:
    body = _typed(value, dict, "body")
    if body.get("format") != FORMAT:
        raise _Unfit(f"has format {body.get('format')!r}, this version reads {FORMAT}")
    if (body["key"], body["namespace"]) != (key, namespace):
        raise _Unfit("belongs to another entry")
    created = body["created"]
    if isinstance(created, bool) or not isinstance(created, int | float) or not math.isfinite(created):
        raise _Unfit("has a mistyped 'created'")
    companions = _refs(body["companions"], "companions")
    if not all(_is_companion(name) for name in companions):
        raise _Unfit("names a companion that cannot be one")
    return Entry(
        key=key,
        ingredients=_ingredients(body["ingredients"]),
        blobs=_refs(body["blobs"], "blobs"),
        meta=_typed(body["meta"], dict, "meta"),
        companions=companions,
        created=created,
    )


def _is_companion(name: str) -> bool:
    return _COMPANION.fullmatch(name) is not None and name != FILE_NAME


def _typed(value: object, kind: type[T], name: str) -> T:
    if not isinstance(value, kind):
        raise _Unfit(f"has a mistyped {name!r}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _ingredients(value: object) -> Ingredients:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise _Unfit("has mistyped ingredients: expected a list of [name, value]")
    for pair in value:
        fits = isinstance(pair, Sequence) and not isinstance(pair, str | bytes)
        if not fits or len(pair) != 2 or not isinstance(pair[0], str):
            raise _Unfit("has a mistyped ingredient: expected [name, value]")
        inner = pair[1]
        if isinstance(inner, float) and not math.isfinite(inner):
            raise _Unfit(f"has an ingredient {pair[0]!r} that is not finite")
        if inner is not None and not isinstance(inner, bool | int | float | str):
            _ingredients(inner)
    return value


def _refs(value: object, name: str) -> dict[str, BlobRef]:
    refs = {}
    for role, ref in _typed(value, dict, name).items():
        fields = _typed(ref, dict, role)
        digest, size = fields.get("digest"), fields.get("size")
        if not is_digest(digest) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise _Unfit(f"has a mistyped blob name {role!r}")
        refs[role] = BlobRef(digest, size)
    return refs


def _refs_as_json(refs: Mapping[str, BlobRef]) -> dict[str, dict[str, str | int]]:
    return {role: {"digest": ref.digest, "size": ref.size} for role, ref in refs.items()}
