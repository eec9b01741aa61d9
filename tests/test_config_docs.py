"""The table that ``Config.describe()`` prints, and the page that is written from the same fields."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import torch_piecewise as tp
from torch_piecewise.config import settings
from torch_piecewise.config.table import ConfigTable

TOOL = Path(__file__).parents[1] / "tools" / "config_docs.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_docs", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- the table


@pytest.fixture
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_PIECEWISE_CACHE_DIR", raising=False)


def line_of(table: ConfigTable, field: str) -> str:
    (line,) = [line for line in str(table).splitlines() if line.startswith(f"{field} ")]
    return re.sub(r" {2,}", " | ", line)


def test_the_table_has_a_line_for_each_field_and_a_head() -> None:
    lines = str(tp.Config(mode="none").describe()).splitlines()
    assert re.split(r" {2,}", lines[0]) == ["field", "value", "from", "meaning"]
    assert set(lines[1]) == {"-"}
    assert [line.split()[0] for line in lines[2:]] == list(settings())


def test_a_line_tells_value_origin_and_meaning() -> None:
    table = tp.Config(compile_sizes=[8, 1], cudagraph_mode="piecewise").describe()
    assert line_of(table, "compile_sizes") == (
        "compile_sizes | (1, 8) | given | Sizes that get code of their own, which beats the range they lie in"
    )
    assert line_of(table, "cudagraph_mode").startswith("cudagraph_mode | 'PIECEWISE' | given | ")
    assert line_of(table, "mode") == "mode | 'piecewise' | default | What is done with the model"


@pytest.mark.usefixtures("_bare_environment")
def test_the_class_describes_what_the_environment_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {row.source for row in tp.Config.describe()} == {"default"}
    monkeypatch.setenv("TORCH_PIECEWISE_ON_MISS", "error")
    line = "on_miss | 'error' | TORCH_PIECEWISE_ON_MISS | What happens when the store has no entry"
    assert line_of(tp.Config.describe(), "on_miss") == line


def test_what_is_given_beats_the_environment_in_the_table_too() -> None:
    env = {"TORCH_PIECEWISE_ON_MISS": "error", "TORCH_PIECEWISE_GUARDS": "full"}
    rows = {row.name: row for row in tp.Config(on_miss="compile").with_env(env).describe()}
    assert (rows["on_miss"].value, rows["on_miss"].source) == ("compile", "given")
    assert (rows["guards"].value, rows["guards"].source) == ("full", "TORCH_PIECEWISE_GUARDS")


def test_a_long_value_is_cut_short_in_the_table_and_whole_in_its_row() -> None:
    sizes = tuple(range(1, 60))
    table = tp.Config(compile_sizes=sizes).describe()
    (row,) = [row for row in table if row.name == "compile_sizes"]
    assert row.value == sizes
    shown = line_of(table, "compile_sizes").split(" | ")[1]
    assert shown.endswith("...")
    assert len(shown) == 32


def test_meanings_are_one_line_without_an_end() -> None:
    for row in tp.Config().describe():
        assert "\n" not in row.meaning
        assert 10 < len(row.meaning) < 110, row.name
        assert not row.meaning.endswith((".", ":"))


# -- the page


def test_the_page_of_settings_is_current(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--check"]) == 0, capsys.readouterr().out


def test_an_old_page_is_noticed(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "config.md"
    old.write_text(tool.page() + "more\n")
    monkeypatch.setattr(tool, "PAGE", old)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    assert tool.main(["--check"]) == 1
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0


def test_the_page_has_a_section_for_each_field_in_order(tool: ModuleType) -> None:
    sections = re.findall(r"^### (\w+)$", tool.page(), re.MULTILINE)
    assert sections == list(settings())


@pytest.mark.parametrize("field", settings())
def test_an_example_says_the_same_in_python_and_in_the_environment(tool: ModuleType, field: str) -> None:
    example = tool.EXAMPLES[field]
    config = tp.Config(**example)
    assert getattr(config, field) != getattr(tp.Config(), field)
    env = {f"TORCH_PIECEWISE_{name.upper()}": tool.in_environment(value) for name, value in example.items()}
    assert tp.Config.from_env(env) == config
