"""The answers behind ``torch-piecewise cache``: values in, values out, nothing printed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch_piecewise.cache_key import (
    Difference,
    Key,
    Nearest,
    ingredients_from_json,
    nearest,
    told_differences,
)
from torch_piecewise.errors import ConfigError, MissError
from torch_piecewise.store.base import Entry, Hit
from torch_piecewise.store.files import Files, mapped_errors
from torch_piecewise.store.inspection import Listed, Verdict, listed, verify
from torch_piecewise.store.layout import Layout
from torch_piecewise.store.opening import open_store
from torch_piecewise.store.sweep import PruneReport
from torch_piecewise.store.trust import trust_of_this_process

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SHORTEST_PREFIX = 4


@dataclass(frozen=True)
class Why:
    """Why an entry had to be made although others were there.

    Attributes:
        entry: the entry asked about.
        nearest: key of the earlier entry most like it; None if there was none.
        differences: in what it differs from that one.
        text: the same as one line.
    """

    entry: Entry
    nearest: str | None
    differences: tuple[Difference, ...]
    text: str


def entries_of(root: Path) -> list[Listed]:
    """Every entry of ``root``, the most recently used first; a root that does not exist has none.

    Raises:
        UntrustedError: others can write to it.
        StoreError: it cannot be read.
    """
    with mapped_errors("listing it", root):
        return listed(_trusted(root), Files())


def verdict_of(root: Path) -> Verdict:
    """Whether every file of ``root`` is what it should be; nothing is changed.

    Raises:
        UntrustedError: others can write to it.
        StoreError: it cannot be read.
    """
    with mapped_errors("looking it over", root):
        return verify(_trusted(root), Files())


def find_entry(root: Path, target: str | None) -> Entry:
    """The entry that ``target`` names: the beginning of its key, or a model's name or tag (then the newest).

    Args:
        target: None for the newest program.

    Raises:
        MissError: there is none, or a prefix fits several.
    """
    usable = [one.found.value for one in entries_of(root) if isinstance(one.found, Hit)]
    if target is None:
        return _newest_program(usable, root)
    if len(target) >= _SHORTEST_PREFIX and re.fullmatch("[0-9a-f]+", target):
        by_key = [entry for entry in usable if entry.key.startswith(target)]
        if len({entry.key for entry in by_key}) > 1:
            raise MissError(f"{target!r} fits {len(by_key)} entries", hint="give more digits of the key")
        if by_key:
            return by_key[0]
    tags = {one.key: one.namespace.rpartition("@")[0] for one in entries_of(root)}
    named = [entry for entry in usable if target in (entry.meta.get("name"), tags.get(entry.key))]
    if not named:
        raise MissError(
            f"No entry is called {target!r}",
            expected=f"at least {_SHORTEST_PREFIX} digits of a key, a model's name, or a tag",
            hint="see: torch-piecewise cache list",
        )
    # A model is asked about as a whole, so its program comes before the pieces of it.
    return max(named, key=lambda entry: (entry.meta.get("kind") == "program", entry.created))


def _newest_program(usable: Sequence[Entry], root: Path) -> Entry:
    programs = [entry for entry in usable if entry.meta.get("kind") == "program"]
    if not programs:
        raise MissError(
            "No program is kept here",
            expected="one that an earlier run compiled and kept",
            got=f"none in {root}",
            hint="run the model once, or name another folder: --root, TORCH_PIECEWISE_CACHE_DIR",
        )
    return max(programs, key=lambda entry: entry.created)


def why(root: Path, target: str | None) -> Why:
    """Why the entry ``target`` was made: the earlier entry most like it, and where they differ.

    Args:
        target: as for :func:`find_entry`.

    Raises:
        MissError: no entry is called that.
    """
    entry = find_entry(root, target)
    kind = entry.meta.get("kind")
    others = [one.found.value for one in entries_of(root) if isinstance(one.found, Hit)]
    earlier = [
        one
        for one in others
        if one.key != entry.key and one.created <= entry.created and one.meta.get("kind") == kind
    ]
    found = nearest(Key(ingredients_from_json(entry.ingredients)), earlier)
    name = entry.meta.get("name")
    what = f"{kind or 'entry'} {name or entry.key[:12]}"
    text = _made_because(what, found)
    recorded = entry.meta.get("miss")
    if isinstance(recorded, str) and recorded:
        text = f"{text} (recorded when it was made: {recorded})"
    if found is None:
        return Why(entry, None, (), text)
    return Why(entry, found.entry.key, found.differences, text)


def _made_because(what: str, found: Nearest[Entry] | None) -> str:
    if found is None:
        return f"{what} was made because the store had nothing of the kind yet"
    earlier = found.entry.key[:12]
    if [one.path for one in found.differences] == ["specialisation"]:
        return f"{what} was made for calls that the entry before it, {earlier}, does not serve: another trace"
    return f"{what} was made because the nearest entry {earlier} {told_differences(found)}"


def prune(root: Path, *, limit_bytes: int | None, unused_seconds: float | None, dry_run: bool) -> PruneReport:
    """Remove leftovers, and entries beyond the limits; see ``Housekeeper.prune``.

    Raises:
        UntrustedError: others can write to the root.
        StoreError: it cannot be written to.
    """
    with mapped_errors("cleaning it up", root):
        _trusted(root)
    if not root.is_dir():
        return PruneReport()
    opened = open_store(root)
    if opened.housekeeper is None:
        return PruneReport()
    return opened.housekeeper.prune(limit_bytes=limit_bytes, unused_seconds=unused_seconds, dry_run=dry_run)


def parse_size(text: str) -> int:
    """``500M``, ``10 GiB`` or a number of bytes; units are powers of 1024.

    Raises:
        ConfigError: it is none of these.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError("A size cannot be read", expected="such as 500M or 10GiB", got=repr(text))
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])


def show_size(size: int) -> str:
    """Bytes for people."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _trusted(root: Path) -> Layout:
    if root.exists():
        if not root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(root))
        trust_of_this_process().check(root, root.stat())
    return Layout(root)
