"""``torch-piecewise report``, ``explain`` and ``doctor``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from torch_piecewise.errors import PiecewiseError
from torch_piecewise.store.root import cache_root

# What runs models is imported where it is used: help and doctor are to answer at once.
if TYPE_CHECKING:
    from torch_piecewise.report import Report
    from torch_piecewise.seeing_cli.script import Target

_root_option = click.option(
    "--root", type=click.Path(path_type=Path), help="The cache folder; else as the library finds it."
)


@click.command(short_help="Write a page about a model, a script or a recorded run.")
@click.argument("target", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="Where to write: a name in .html, .json or .perfetto.json.",
)
@click.option("--profile", is_flag=True, help="Also measure each piece against eager (a script only).")
@_root_option
def report(target: str | None, output: Path, profile: bool, root: Path | None) -> None:
    """Write the report of TARGET.

    TARGET is a recorded run (run.json, as program.report("run.json") wrote it); a script, which is run, or
    MODULE:FUNCTION, which is called; or a program in the store by its name, its tag or digits of its key:
    the newest one where TARGET is left out.
    """
    with _told():
        for name, found in _reports(target, profile, root):
            path = output.with_name(f"{name}-{output.name}") if name else output
            _write(found, path)
            click.echo(f"{found.title}: {path}")


@click.command(short_help="Say where a model would be cut; compile nothing.")
@click.argument("script")
@click.option("--grad", is_flag=True, help="As for training; else as under torch.no_grad().")
@click.option("--every-break", is_flag=True, help="Run the model eagerly and tell every graph break.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Also draw it: a name in .html or .json."
)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def explain(script: str, every_break: bool, grad: bool, output: Path | None, as_json: bool) -> None:
    """Say where SCRIPT's model would be cut, into what, and what is in the way; nothing is compiled.

    SCRIPT defines model and example_inputs (a tuple, a dict of keyword arguments, or one argument), or is
    MODULE:FUNCTION that returns both, and if it likes a dict of settings, as for bake. A model that is
    compiled there is explained with its own settings, another with those of the environment. Exits with 1
    where something is in the way.
    """
    import torch

    from torch_piecewise.seeing_cli.script import load

    with _told(), torch.set_grad_enabled(grad):
        target = load(script)
        name, handle = _one(target)
        found = handle.explain(_inputs(target), every_break=every_break)
        if output is not None and found.report is not None:
            _write(found.report, output)
    click.echo(json.dumps(dataclasses.asdict(found), indent=2) if as_json else f"{name}: {found}")
    sys.exit(1 if found.obstacles else 0)


@click.command(short_help="Check what is needed on this machine.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@_root_option
def doctor(as_json: bool, root: Path | None) -> None:
    """Check what the library needs on this machine; exits with 1 where something fails."""
    from torch_piecewise.doctor import Host, examine

    host = Host.here() if root is None else dataclasses.replace(Host.here(), root=root.absolute())
    findings = examine(host)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in findings], indent=2))
    else:
        for one in findings:
            click.echo(f"{one.state:<5} {one.what:<12} {one.text}")
            if one.mend:
                click.echo(f"{'':<5} {'':<12} to do: {one.mend}")
    sys.exit(1 if any(one.state == "fail" for one in findings) else 0)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn our errors into the command's: their text and exit code 1, no traceback."""
    try:
        yield
    except PiecewiseError as error:
        raise click.ClickException(str(error)) from error


def _reports(target: str | None, profile: bool, root: Path | None) -> Iterator[tuple[str, Report]]:
    """Reports with a name to tell them apart; an empty one where there is only one."""
    from torch_piecewise.seeing_cli.script import is_code, load

    if target is not None and target.endswith(".json"):
        yield "", _recorded(Path(target))
    elif target is not None and is_code(target):
        found = load(target)
        for name, handle in found.compiled.items():
            yield name if len(found.compiled) > 1 else "", _after_running(handle, found, profile)
    else:
        from torch_piecewise.seeing_cli.kept import kept_report

        yield "", kept_report(root.absolute() if root is not None else cache_root(os.environ), target)


def _recorded(path: Path) -> Report:
    from torch_piecewise.report import from_json

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path} cannot be read: {error}") from error
    return from_json(document)


def _after_running(handle: Any, target: Target, profile: bool) -> Report:
    import torch

    from torch_piecewise.seeing_cli.script import NOT_GIVEN
    from torch_piecewise.trials.base import calls_of

    # As models are served; a script that wants gradients has called its model itself.
    with torch.no_grad():
        if not handle.entries and target.inputs is not NOT_GIVEN:
            for args, kwargs in calls_of(target.inputs):
                handle(*args, **kwargs)
        if profile:
            handle.profile(_inputs(target))
    made: Report = handle.report()
    return made


def _inputs(target: Target) -> Any:
    from torch_piecewise.seeing_cli.script import NOT_GIVEN

    if target.inputs is NOT_GIVEN:
        raise click.ClickException(
            "The script defines no example_inputs: add the arguments of one call, as a tuple"
        )
    return target.inputs


def _one(target: Target) -> tuple[str, Any]:
    name = "model" if "model" in target.compiled else next(iter(target.compiled))
    return name, target.compiled[name]


def _write(found: Report, path: Path) -> None:
    from torch_piecewise.report import write

    write(found, path)
