"""The index of a manager: what it has kept, as plain JSON in an entry of the store.

An entry's manifest and blobs carry their digests, so torn and altered ones are found before anything is
parsed; parsing is JSON's, and what does not fit is a reason. Artifacts are found by their own keys, with or
without an index: it lists them for people and says what there is instead of what was looked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch_piecewise.artifact_store import ArtifactStore
from torch_piecewise.cache_key import Ingredient, Key
from torch_piecewise.ranges import UNBOUNDED, Range
from torch_piecewise.store import Cause, Draft, Found, Hit, Miss

FORMAT = 1
"""Goes up when the meaning of an index changes; another format is a miss."""


@dataclass(frozen=True)
class IndexEntry:
    """One artifact.

    Attributes:
        piece: name of the first piece it was made for.
        fingerprint: structural identity of the piece.
        range: the sizes it serves.
        compiler: name of what made it.
    """

    piece: str
    fingerprint: str
    range: Range
    compiler: str


@dataclass(frozen=True)
class Index:
    """What is kept under one set of ingredients, in the order of names and ranges."""

    entries: tuple[IndexEntry, ...] = ()

    def and_(self, more: Iterable[IndexEntry]) -> Index:
        """This index with ``more``, which beat entries of the same piece and range."""
        named = {(entry.fingerprint, entry.range): entry for entry in (*self.entries, *more)}
        order = sorted(named.values(), key=lambda entry: (entry.piece, entry.range, entry.fingerprint))
        return Index(tuple(order))

    def why_not(self, fingerprint: str, range: Range) -> str:
        """What the index has instead of an artifact that was looked for."""
        ranges = sorted(entry.range for entry in self.entries if entry.fingerprint == fingerprint)
        if range in ranges:
            return "the index lists it, so it was removed or damaged"
        if ranges:
            return f"the index has this piece for {', '.join(map(str, ranges))}, not for {range}"
        return f"the index has {len(self.entries)} artifacts, none of this piece"

    def as_text(self) -> str:
        """The JSON text."""
        rows = [
            {
                "piece": entry.piece,
                "fingerprint": entry.fingerprint,
                "range": [entry.range.start, None if entry.range.end == UNBOUNDED else entry.range.end],
                "compiler": entry.compiler,
            }
            for entry in self.entries
        ]
        return json.dumps({"format": FORMAT, "artifacts": rows}, indent=1)

    @classmethod
    def of_text(cls, text: bytes) -> Found[Index]:
        """The index in ``text``; a miss with the reason for whatever else it is."""
        try:
            document = json.loads(text)
            found = document["format"]
            if found != FORMAT:
                return Miss(f"the index has format {found!r}, this version reads {FORMAT}", Cause.FOREIGN)
            return Hit(cls(tuple(_entries(document["artifacts"]))))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return Miss(f"the index is mistyped ({type(error).__name__}: {error})", Cause.FOREIGN)


def read_index(kept: ArtifactStore) -> Found[Index]:
    """The index of what ``kept`` holds; a miss says why there is none."""
    found = kept.store.store.get(_key(kept).digest())
    if isinstance(found, Miss):
        return Miss(f"there is no index: {found.reason}", found.cause)
    if "index" not in found.value.blobs:
        return Miss("the entry holds no index", Cause.FOREIGN)
    text = kept.store.store.blobs.read(found.value.blobs["index"])
    return text if isinstance(text, Miss) else Index.of_text(text.value)


def write_index(kept: ArtifactStore, entries: Iterable[IndexEntry]) -> Index:
    """Add ``entries`` to the index of what ``kept`` holds; what others added since stays.

    Raises:
        StoreError: it could not be kept.
    """
    key = _key(kept)
    with kept.store.flights.flight(key.digest()):
        before = read_index(kept)
        index = (before.value if isinstance(before, Hit) else Index()).and_(entries)
        text = index.as_text()
        draft = Draft(key.as_json(), {"index": text.encode()}, {"kind": "index"}, {"index.json": text})
        kept.store.store.put(key.digest(), draft)
    return index


def _key(kept: ArtifactStore) -> Key:
    return Key.of((*kept.base, Ingredient("index", FORMAT)))


def _entries(rows: Any) -> Iterator[IndexEntry]:
    if not isinstance(rows, list):
        raise TypeError("'artifacts' is no list")
    for row in rows:
        texts = [row[name] for name in ("piece", "fingerprint", "compiler")]
        start, end = row["range"]
        sizes = [start] if end is None else [start, end]
        if not all(isinstance(text, str) for text in texts) or not all(type(size) is int for size in sizes):
            raise TypeError(f"an artifact of the index is mistyped: {row!r}"[:200])
        piece, fingerprint, compiler = texts
        yield IndexEntry(piece, fingerprint, Range(start, UNBOUNDED if end is None else end), compiler)
