"""``torch-piecewise cache``: what is kept, whether it is whole, why something missed, and cleaning up."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from torch_piecewise.cache_cli.base import (
    entries_of,
    find_entry,
    parse_size,
    prune,
    show_size,
    verdict_of,
    why,
)
from torch_piecewise.errors import PiecewiseError
from torch_piecewise.store.base import Cause, Entry, Hit, Miss
from torch_piecewise.store.inspection import Listed
from torch_piecewise.store.root import cache_root


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


def _here(context: click.Context, _parameter: click.Parameter, root: Path | None) -> None:
    if root is not None:
        context.obj = root.absolute()


_root_option = click.option(
    "--root",
    type=click.Path(path_type=Path),
    expose_value=False,
    callback=_here,
    help="The cache folder, as before the verb.",
)
"""People write it behind the verb too, where the other commands have it."""


@cache.command("path")
@_json_option
@_root_option
@click.pass_obj
def _path(root: Path, as_json: bool) -> None:
    """Print where the cache is."""
    if as_json:
        _print_json({"path": str(root), "exists": root.is_dir()})
    else:
        click.echo(str(root))


@cache.command("list")
@_json_option
@_root_option
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
    _print_table(names, [_cells(row, names) for row in shown])


@cache.command("show")
@click.argument("target", required=False)
@_json_option
@_root_option
@click.pass_obj
def _show(root: Path, target: str | None, as_json: bool) -> None:
    """Show one entry: its ingredients, blobs and companions.

    TARGET: digits of its key, or a model's name or tag (its newest); the newest program where left out.
    """
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


@cache.command("verify", short_help="Compare every file with its digest.")
@_json_option
@_root_option
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
@_root_option
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
            f"{'would free' if dry_run else 'freed'} {show_size(report.freed_bytes)}: "
            f"{report.entries} entries, {report.blobs} blobs, {report.temps + report.leftovers} leftovers, "
            f"{report.quarantined} set aside; {report.in_use} in use; {show_size(report.size_bytes)} kept"
        )


@cache.command("why")
@click.argument("target", required=False)
@_json_option
@_root_option
@click.pass_obj
def _why(root: Path, target: str | None, as_json: bool) -> None:
    """Say why an entry had to be made.

    TARGET: digits of its key, or a model's name or tag (its newest); the newest program where left out.
    """
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


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn our errors into the command's: their text and exit code 1, no traceback."""
    try:
        yield
    except PiecewiseError as error:
        raise click.ClickException(str(error)) from error


def _row(one: Listed) -> dict[str, Any]:
    entry = one.found.value if isinstance(one.found, Hit) else None
    return {
        "key": one.key,
        "namespace": one.namespace,
        "kind": _text(entry, "kind"),
        "name": _text(entry, "name") or _text(entry, "piece"),
        "size": one.size,
        "created": _time(entry.created) if entry is not None else None,
        "used": _time(one.used_at),
        "problem": one.found.reason if isinstance(one.found, Miss) else None,
        "foreign": isinstance(one.found, Miss) and one.found.cause is Cause.FOREIGN,
    }


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What people see of a row; of an entry that cannot be read, why, in the place of its name."""
    if row["problem"] is not None:
        row = {**row, "kind": "unreadable", "name": row["problem"]}
    return [str(row[name] or "") for name in names]


def _text(entry: Entry | None, name: str) -> str | None:
    value = None if entry is None else entry.meta.get(name)
    return value if isinstance(value, str) else None


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")


def _harm(harmful: bool) -> str:
    return "is made anew when it is needed" if harmful else "harmless: never read"


def _flat(ingredients: Sequence[Any], inside: str) -> Iterator[tuple[str, str]]:
    for name, value in ingredients:
        path = ".".join(part for part in (inside, name) if part)
        if isinstance(value, Sequence) and not isinstance(value, str):
            yield from _flat(value, path)
        else:
            yield path, str(value)


def _print_json(document: object) -> None:
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
