"""The table of public names: what it says exists, exists. What it lacks is listed, not a failure."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch

import torch_piecewise as tp
from torch_piecewise.cli import commands
from torch_piecewise.compiled import CompiledCall
from torch_piecewise.config import settings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "contract.md").read_text()


def rows(page: str) -> Iterator[tuple[str, ...]]:
    """The cells of every row that begins with a name in code marks."""
    for line in page.splitlines():
        if line.startswith("| `"):
            yield tuple(cell.strip() for cell in line.strip("|").split(" | "))


THERE, _, LATER = PAGE.partition("## Not there yet")
NOT_YET, _, FIELDS = LATER.partition("## Settings")
NAMED = [row for row in rows(THERE) if len(row) == 4]
ABSENT = re.findall(r"`([^`]+)`", " ".join(row[0] for row in rows(NOT_YET)))


@pytest.fixture(scope="module")
def handle() -> CompiledCall:
    return tp.program_of(tp.compile(torch.nn.ReLU(), backend="eager", dynamic_arg_dims={"input": 0}))


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def exists(name: str, handle: CompiledCall) -> bool:
    """Whether a name of the table can be used."""
    kind, _, rest = name.partition(".")
    if kind == "tp":
        return hasattr(tp, rest)
    if kind == "handle":
        return hasattr(handle, rest)
    if name.startswith("torch-piecewise "):
        return command(name.split()[1:]) is not None
    if name.startswith("torch_piecewise."):
        return importlib.util.find_spec(name) is not None
    return True


def command(path: list[str]) -> click.Command | None:
    found: click.Command | None = commands
    for word in path:
        found = found.commands.get(word) if isinstance(found, click.Group) else None
    return found


def test_the_page_is_read_as_meant() -> None:
    assert len(NAMED) > 50
    assert ("`tp.Range`", "`ranges`", "a closed interval of sizes", "`tests/test_ranges.py`") in [
        (row[0].strip("| "), *row[1:3], row[3].strip("| ")) for row in NAMED
    ]


@pytest.mark.parametrize("row", NAMED, ids=lambda row: row[0].strip("`| "))
def test_each_row_names_what_exists(row: tuple[str, ...], handle: CompiledCall) -> None:
    name_cell, module_cell, sentence, test_cell = row
    assert all(exists(name, handle) for name in names(name_cell)), name_cell
    (module,) = names(module_cell)
    spec = importlib.util.find_spec(f"torch_piecewise.{module}")
    assert spec is not None, module
    assert sentence
    (file,) = names(test_cell)
    assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("row", [row for row in NAMED if "`tp." in row[0]], ids=lambda row: row[0])
def test_each_public_name_is_made_in_the_module_its_row_says(row: tuple[str, ...]) -> None:
    ((name,), (module,)) = names(row[0]), names(row[1])
    made = importlib.import_module(f"torch_piecewise.{module}")
    assert getattr(made, name.removeprefix("tp.")) is getattr(tp, name.removeprefix("tp."))


def test_each_setting_with_a_row_exists_and_its_test_mentions_it() -> None:
    for row in rows(FIELDS):
        field, file = (cell.strip("`| ") for cell in row)
        assert field.removeprefix("Config.") in settings(), field
        assert re.search(rf"\b{field.removeprefix('Config.')}\b", (ROOT / file).read_text()), (field, file)


def test_what_the_page_lacks_is_listed(handle: CompiledCall) -> None:
    known = {name for row in NAMED for name in names(row[0])}
    members = {name for name in dir(CompiledCall) if not name.startswith("_")}
    missing = [f"tp.{name}" for name in tp.__all__ if f"tp.{name}" not in known]
    missing += [f"handle.{name}" for name in sorted(members) if f"handle.{name}" not in known]
    fields = {row[0].strip("`| ") for row in rows(FIELDS)}
    missing += [f"Config.{name}" for name in settings() if f"Config.{name}" not in fields]
    late = [name for name in ABSENT if exists(name, handle)]
    if missing or late:
        pytest.skip(f"docs/contract.md lacks {', '.join(missing)}; has as absent {', '.join(late)}")
