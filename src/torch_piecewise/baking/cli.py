"""``torch-piecewise bake``: one bundle from a function that makes a model."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from torch_piecewise.errors import ConfigError


@click.command(short_help="Compile ahead of time into one file.")
@click.argument("target", metavar="MODULE:FUNCTION")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--signing-key-file", type=click.Path(path_type=Path), help="Sign with this key; tp.load checks it."
)
def bake(target: str, path: Path, signing_key_file: Path | None) -> None:
    """Compile a model ahead of time into one file that starts with only torch.

    MODULE:FUNCTION is called without arguments and returns the model, the example inputs (a tuple, or a dict
    of keyword arguments), and a dict of settings, which may be left out. MODULE is looked for in this folder
    too.
    """
    sys.path.insert(0, "")
    model, inputs, fields = _made(target)
    # Imported for its cost: it loads what compiles.
    from torch_piecewise.baking import bake as bake_model

    if signing_key_file is not None:
        fields = {**fields, "signing_key_file": str(signing_key_file)}
    with warnings.catch_warnings():
        # torch 2.13 copies specs of results whose class it means to remove; nobody here can help it.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        bake_model(model, inputs, path, **fields)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def _made(target: str) -> tuple[Any, Any, dict[str, Any]]:
    module, colon, name = target.partition(":")
    if not colon:
        raise _no_function(
            target,
            "no colon",
            f"write {target}:FUNCTION, the function that makes the model and its example inputs",
        )
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        hint = "check the spelling, and that the module can be imported from this folder"
        raise _no_function(target, str(error), hint) from error
    if not callable(function):
        raise _no_function(target, f"no function, but {type(function).__name__}", None)
    made = function()
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise ConfigError(
            f"{target} returned nothing that can be baked",
            expected="(model, example inputs) or (model, example inputs, settings)",
            got=type(made).__name__,
        )
    model, inputs, *rest = made
    settings = rest[0] if rest else {}
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{target} returned nothing that can be baked",
            expected="(model, example inputs, settings), the settings a dict of Config fields",
            got=f"settings of type {type(settings).__name__}",
        )
    return model, inputs, settings


def _no_function(target: str, got: str, hint: str | None) -> ConfigError:
    return ConfigError(
        f"{target!r} does not name a function",
        expected="MODULE:FUNCTION, like mypackage.serving:make",
        got=got,
        hint=hint,
    )
