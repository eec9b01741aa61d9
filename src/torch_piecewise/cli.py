"""The command ``torch-piecewise``: parses and prints."""

from __future__ import annotations

import logging
import sys

import click

from torch_piecewise.baking.cli import bake
from torch_piecewise.cache_cli import cache
from torch_piecewise.errors import PiecewiseError
from torch_piecewise.seeing_cli import doctor, explain, report


@click.group()
@click.version_option(package_name="torch-piecewise")
@click.option("-v", "--verbose", is_flag=True, help="Log each phase.")
def commands(verbose: bool) -> None:
    """Piecewise compilation of PyTorch models."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")


@commands.command(short_help="Let a small chat model answer, in pieces.")
@click.option("--prompt", help="What to ask; a default question otherwise.")
@click.option("--new-tokens", default=64, show_default=True, help="The most tokens of the answer.")
@click.option(
    "--compare/--no-compare", default=True, show_default=True, help="Measure the uncompiled model too."
)
@click.option("--torch-compile", is_flag=True, help="Measure plain torch.compile too: over a minute more.")
def demo(prompt: str | None, new_tokens: int, compare: bool, torch_compile: bool) -> None:
    """Compile SmolLM2-135M in pieces, let it answer, and show how fast it is."""
    # Imported for its cost: it loads transformers.
    from torch_piecewise.demo.command import run

    same = run(prompt, new_tokens=new_tokens, out=sys.stdout, compare=compare, torch_compile=torch_compile)
    sys.exit(0 if same else 1)


for verb in (bake, cache, report, explain, doctor):
    commands.add_command(verb)


def main() -> None:
    """Entry point: errors of the library are messages, not tracebacks."""
    try:
        commands()
    except PiecewiseError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
