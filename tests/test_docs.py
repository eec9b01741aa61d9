"""What the documentation says is so: links lead somewhere, code runs, commands exist, messages are ours."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import sys
import types
from pathlib import Path
from unittest import mock

import click
import pytest
from click.testing import CliRunner

from tests.pages import NOTES, PAGES, ROOT, Block, anchors, as_module, blocks, links, python_blocks
from torch_piecewise import errors
from torch_piecewise.cli import commands

WITH_PYTHON = [page for page in PAGES if python_blocks(page)]
SLOW = [page for page in WITH_PYTHON if any(block.note.startswith("slow") for block in python_blocks(page))]
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
CLASSES = [
    name
    for name, one in vars(errors).items()
    if isinstance(one, type) and issubclass(one, errors.PiecewiseError)
]
SHOWN = [block for page in WITH_PYTHON for block in python_blocks(page) if block.language == "python"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# -- links


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    lost = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            lost.append(link)
    assert lost == []


def test_links_and_headings_are_read_as_meant(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`, three\n[a](b.md#c) `[no](no)`\n```\n# no\n[no](no)\n```\n[e](https://f.g)\n"
    )
    assert list(links(page)) == ["b.md#c"]
    assert anchors(page) == {"one-two-three"}


def test_each_decision_has_a_number_of_its_own_and_says_it() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [re.match(r"\d{4}(?=-)", page.name) for page in pages]
    assert all(numbers)
    said = [page.read_text()[:8] for page in pages]
    assert said == [f"# {number[0]}: " for number in numbers if number]
    assert len(set(said)) == len(said)


# -- Python


@pytest.fixture
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TORCH_PIECEWISE_CACHE_DIR", str(tmp_path / "store"))


def run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, slow: bool) -> None:
    """Run the page as a module whose lines are the page's."""
    # Out of the way of imports: a worker must not run a whole page to find a class of it.
    file = folder / "code" / "page.py"
    file.parent.mkdir()
    file.write_text(as_module(page, slow=slow))
    # Always the same name: pages define the same operation, which is the same one to torch only then.
    module = types.ModuleType("page")
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "page", module)
    before = set(sys.modules)
    try:
        with mock.patch.dict(os.environ):  # what a page sets there is the page's alone
            exec(compile(file.read_text(), str(file), "exec"), module.__dict__)
    finally:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]


@pytest.mark.usefixtures("_in_a_folder_of_its_own")
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_code_of_a_page_runs_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_PIECEWISE_BACKEND", "eager")
    run(page, tmp_path, monkeypatch, slow=False)


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.usefixtures("_in_a_folder_of_its_own")
@pytest.mark.parametrize("page", SLOW, ids=name_of)
def test_the_code_of_a_page_runs_with_what_compiles_for_long(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(page, tmp_path, monkeypatch, slow=True)


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    noted = [block.note for block in SHOWN if block.note]
    assert all(note.startswith(NOTES) and len(note.split()) > 3 for note in noted), noted
    assert len(SHOWN) > 65
    assert sum(note.startswith("not run") for note in noted) <= 3
    assert len(noted) <= 12


def test_a_page_as_a_module_keeps_its_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- setup\na = 1\n-->\n```python\nb = a\n```\n<!-- slow: it takes long -->\n```python\nc = b\n```\n"
        "<!-- not run: needs a moon -->\n\n```python\nd = c\n```\n```sh\ne\n```\n"
    )
    assert as_module(page, slow=False).split("\n")[:10] == ["", "a = 1", "", "", "b = a", "", "", "", "", ""]
    assert as_module(page, slow=True).split("\n")[:9] == ["", "a = 1", "", "", "b = a", "", "", "", "c = b"]
    assert as_module(page, slow=True).strip().endswith("c = b")
    assert [block.note for block in blocks(page)] == [
        "", "", "slow: it takes long", "not run: needs a moon", "",
    ]  # fmt: skip


# -- commands


def command_lines(block: Block) -> list[list[str]]:
    lines = re.findall(r"^(?:\$ )?torch-piecewise +([^#\n]+)", block.text, re.MULTILINE)
    return [line.split() for line in lines]


COMMANDS = sorted(
    {
        (name_of(page), *line)
        for page in PAGES
        for block in blocks(page)
        if block.language in {"", "sh", "console"}
        for line in command_lines(block)
    }
)


def verb(words: list[str]) -> list[str]:
    """The words that name a command, of a line that goes on with its arguments."""
    found: click.Command = commands
    path: list[str] = []
    for word in words:
        if not isinstance(found, click.Group):
            break
        path.append(word)
        found = found.commands.get(word, click.Command(word))
    return path


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_that_a_page_shows_exists_with_its_options(words: tuple[str, ...]) -> None:
    _page, *line = words
    path = verb(line)
    shown = CliRunner().invoke(commands, [*path, "--help"])
    assert shown.exit_code == 0, shown.output
    of_parents = "".join(
        CliRunner().invoke(commands, [*path[:depth], "--help"]).output for depth in range(len(path))
    )
    for option in (word for word in line if re.match(r"--?\w", word)):
        assert re.search(rf"{option.split('=')[0]}\b", shown.output + of_parents), option


def test_pages_show_commands() -> None:
    assert len({tuple(verb(list(line[1:]))) for line in COMMANDS}) >= 8


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_make_target_that_a_page_shows_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {
        match
        for block in blocks(page)
        if block.language in {"", "sh", "console"}
        for match in re.findall(r"^(?:\$ )?make (\w+)", block.text, re.MULTILINE)
    }
    assert shown <= targets


# -- messages


@functools.cache
def texts_of_source() -> list[str]:
    """For each module, all that its strings say, one a line."""
    found = []
    for file in (ROOT / "src").rglob("*.py"):
        nodes = ast.walk(ast.parse(file.read_text()))
        found.append(
            "\n".join(
                node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
            )
        )
    return found


def messages() -> list[str]:
    """What the first column of the table of messages quotes."""
    ours = TROUBLESHOOTING.read_text().partition("## Warnings that come from torch")[0]
    rows = re.findall(r"^\| (.+?) \| ", ours, re.MULTILINE)
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    return [text for text in quoted if " " in text]


def fixed_parts(message: str) -> list[str]:
    """What of a quoted message is the same in each case."""
    # What differs: dots, names in quotes, numbers, names of pieces, ranges; and what is signed or trusted.
    changing = r"\.\.\.|'[^']*'|\bsubmod_\d+|\[[\d, ]+\]|\d+|=\.\.\."
    whose = r"^The (?:bundle|cache at)(?= is| \.\.\. is)"
    parts = [part.strip(" ,:()") for part in re.split(f"{changing}|{whose}", message)]
    return [part for part in parts if len(part) > 3]


@pytest.mark.parametrize("message", messages())
def test_a_message_that_troubleshooting_quotes_is_in_the_source(message: str) -> None:
    fixed = fixed_parts(message)
    assert fixed
    assert any(all(part in text for part in fixed) for text in texts_of_source()), fixed


def test_troubleshooting_quotes_messages() -> None:
    assert len(messages()) >= 30


def raising(name: str) -> list[str]:
    """The modules that make an error of the class ``name``."""
    return [text for text in map(Path.read_text, (ROOT / "src").rglob("*.py")) if f" {name}(\n" in text]


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_of_error_is_on_the_page_with_a_message_of_it(name: str) -> None:
    assert f"`{name}`" in TROUBLESHOOTING.read_text()
    if name == "PiecewiseError":  # raised as one of its kinds only
        return
    sources = raising(name)
    assert sources
    kept = [fixed_parts(message) for message in messages()]
    assert any(all(part in source for part in parts) for parts in kept for source in sources if parts)


# -- figures


def test_every_figure_of_the_comparison_is_one_of_the_measurements() -> None:
    measured = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    said = (ROOT / "docs" / "comparison.md").read_text()
    figures = re.findall(r"\b(\d+(?:\.\d+)?)\s(?:s\b|tokens/s|us\b)", said)
    assert len(figures) > 10
    assert [one for one in figures if not re.search(rf"(?<![\d.]){re.escape(one)}(?![\d.])", measured)] == []


# -- the site


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs-material")
def test_the_site_is_built_and_no_link_in_it_is_broken(tmp_path: Path) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    build(config)
    assert (tmp_path / "site" / "quickstart.html").is_file()
    assert (tmp_path / "site" / "CHANGELOG.html").is_file()
