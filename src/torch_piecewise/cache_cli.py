"""``torch-piecewise cache``: what is kept, whether it is whole, why something missed, and cleaning up."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from torch_piecewise.cache_key import Difference, Key, explain_miss, ingredients_from_json, nearest
from torch_piecewise.errors import ConfigError, MissError, PiecewiseError
from torch_piecewise.store.base import Cause, Entry, Hit, Miss
from torch_piecewise.store.files import Files
from torch_piecewise.store.inspection import Listed, Verdict, listed, verify
from torch_piecewise.store.layout import Layout
from torch_piecewise.store.opening import open_store
from torch_piecewise.store.root import cache_root
from torch_piecewise.store.sweep import PruneReport
from torch_piecewise.store.trust import trust_of_this_process

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SHORTEST_PREFIX = 4


@dataclasses.dataclass(frozen=True)
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
    """
    return listed(_trusted(root), Files())


def verdict_of(root: Path) -> Verdict:
    """Whether every file of ``root`` is what it should be; nothing is changed.

    Raises:
        UntrustedError: others can write to it.
    """
    return verify(_trusted(root), Files())


def find_entry(root: Path, target: str) -> Entry:
    """The entry that ``target`` names: the beginning of its key, or a model's name or tag (then the newest).

    Raises:
        MissError: there is none, or a prefix fits several.
    """
    usable = [one.found.value for one in entries_of(root) if isinstance(one.found, Hit)]
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


def why(root: Path, target: str) -> Why:
    """Why the entry ``target`` was made: the earlier entry most like it, and where they differ.

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
    text = explain_miss(what, found)
    recorded = entry.meta.get("miss")
    if isinstance(recorded, str) and recorded:
        text = f"{text} (recorded when it was made: {recorded})"
    if found is None:
        return Why(entry, None, (), text)
    return Why(entry, found.entry.key, found.differences, text)


def prune(root: Path, *, limit_bytes: int | None, unused_seconds: float | None, dry_run: bool) -> PruneReport:
    """Remove leftovers, and entries beyond the limits; see ``Housekeeper.prune``.

    Raises:
        UntrustedError: others can write to the root.
        StoreError: it cannot be written to.
    """
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
    if root.is_dir():
        trust_of_this_process().check(root, root.stat())
    return Layout(root)


@click.group("cache")
@click.option(
    "--root", type=click.Path(path_type=Path), help="The cache folder; else as the library finds it."
)
@click.pass_context
def cache(context: click.Context, root: Path | None) -> None:
    """Look at what is kept between processes, and clean it up."""
    with _told():
        context.obj = root.absolute() if root is not None else cache_root(os.environ)


_json_option = click.option("--json", "as_json", is_flag=True, help="For machines.")


@cache.command("path")
@_json_option
@click.pass_obj
def _path(root: Path, as_json: bool) -> None:
    """Print where the cache is."""
    if as_json:
        _print_json({"path": str(root), "exists": root.is_dir()})
    else:
        click.echo(str(root))


@cache.command("list")
@_json_option
@click.pass_obj
def _list(root: Path, as_json: bool) -> None:
    """List entries, the most recently used first."""
    with _told():
        rows = [_row(one) for one in entries_of(root)]
    if as_json:
        _print_json(rows)
        return
    names = ("key", "namespace", "kind", "name", "size", "used")
    shown = [{**row, "key": row["key"][:12], "size": show_size(row["size"])} for row in rows]
    _print_table(names, [[str(row[name] or row["problem"] or "") for name in names] for row in shown])


@cache.command("show")
@click.argument("target")
@_json_option
@click.pass_obj
def _show(root: Path, target: str, as_json: bool) -> None:
    """Show one entry: its ingredients, blobs and companions. TARGET: digits of its key, a name, or a tag."""
    with _told():
        entry = find_entry(root, target)
        document = {
            "key": entry.key,
            "created": _time(entry.created),
            "meta": dict(entry.meta),
            "blobs": {role: dataclasses.asdict(ref) for role, ref in entry.blobs.items()},
            "companions": sorted(entry.companions),
            "ingredients": entry.ingredients,
        }
    if as_json:
        _print_json(document)
        return
    rows = [["key", entry.key], ["created", _time(entry.created)]]
    rows += [[f"meta.{name}", str(value)] for name, value in entry.meta.items()]
    rows += [
        [f"blob {role}", f"{ref.digest[:12]} {show_size(ref.size)}"] for role, ref in entry.blobs.items()
    ]
    rows += [["companion", name] for name in sorted(entry.companions)]
    rows += [[path, value] for path, value in _flat(entry.ingredients, "")]
    _print_table(("what", "value"), rows)


@cache.command("verify")
@_json_option
@click.pass_obj
def _verify(root: Path, as_json: bool) -> None:
    """Read every file and compare it with its digest; exits with 1 if something harmful was found."""
    with _told():
        verdict = verdict_of(root)
    if as_json:
        _print_json(dataclasses.asdict(verdict))
    else:
        click.echo(f"{verdict.entries} entries and {verdict.blobs} blobs, {len(verdict.problems)} problems")
        rows = [[problem.path, problem.what, _harm(problem.harmful)] for problem in verdict.problems]
        if rows:
            _print_table(("file", "problem", ""), rows)
    if any(problem.harmful for problem in verdict.problems):
        sys.exit(1)


@cache.command("prune")
@click.option("--limit", help="Evict the least recently used entries down to this size, such as 10GiB.")
@click.option("--unused-days", type=click.FloatRange(min=0), help="Evict what nobody used for so many days.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@_json_option
@click.pass_obj
def _prune(root: Path, limit: str | None, unused_days: float | None, dry_run: bool, as_json: bool) -> None:
    """Remove what crashes left, and entries beyond the limits. What a running process uses stays."""
    with _told():
        report = prune(
            root,
            limit_bytes=None if limit is None else parse_size(limit),
            unused_seconds=None if unused_days is None else unused_days * 86400,
            dry_run=dry_run,
        )
    if as_json:
        _print_json({**dataclasses.asdict(report), "dry_run": dry_run})
    elif report.busy:
        click.echo("another process is cleaning up just now")
    else:
        click.echo(
            f"{'would free' if dry_run else 'freed'} {show_size(report.freed_bytes)}: {report.entries} entries, "
            f"{report.blobs} blobs, {report.temps + report.leftovers} leftovers, "
            f"{report.quarantined} set aside; {report.in_use} in use; {show_size(report.size_bytes)} kept"
        )


@cache.command("why")
@click.argument("target")
@_json_option
@click.pass_obj
def _why(root: Path, target: str, as_json: bool) -> None:
    """Say why an entry had to be made. TARGET: digits of its key, or a model's name or tag (its newest)."""
    with _told():
        found = why(root, target)
    if as_json:
        pairs = [{"path": one.path, "text": str(one)} for one in found.differences]
        document = {
            "key": found.entry.key,
            "nearest": found.nearest,
            "differences": pairs,
            "text": found.text,
        }
        _print_json(document)
        return
    click.echo(found.text)
    if len(found.differences) > 1:
        _print_table(("ingredient",), [[str(one)] for one in found.differences])


class _told:
    """Turn our errors into the command's: their text and exit code 1, no traceback."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PiecewiseError):
            raise click.ClickException(str(error)) from error


def _row(one: Listed) -> dict[str, Any]:
    entry = one.found.value if isinstance(one.found, Hit) else None
    return {
        "key": one.key,
        "namespace": one.namespace,
        "kind": _text(entry, "kind"),
        "name": _text(entry, "name"),
        "size": one.size,
        "created": _time(entry.created) if entry is not None else None,
        "used": _time(one.used_at),
        "problem": one.found.reason if isinstance(one.found, Miss) else None,
        "foreign": isinstance(one.found, Miss) and one.found.cause is Cause.FOREIGN,
    }


def _text(entry: Entry | None, name: str) -> str | None:
    value = None if entry is None else entry.meta.get(name)
    return value if isinstance(value, str) else None


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")


def _harm(harmful: bool) -> str:
    return "is made anew when it is needed" if harmful else "harmless: never read"


def _flat(ingredients: Sequence[Any], inside: str) -> Iterator[tuple[str, str]]:
    for name, value in ingredients:
        path = ".".join(part for part in (inside, name) if part)
        if isinstance(value, Sequence) and not isinstance(value, str):
            yield from _flat(value, path)
        else:
            yield path, str(value)


def _print_json(document: Any) -> None:  # noqa: ANN401
    click.echo(json.dumps(document, indent=2))


def _print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not sys.stdout.isatty():
        for row in (names, *rows):
            click.echo("\t".join(row))
        return
    # Imported here as only a person at a terminal needs it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*names)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
