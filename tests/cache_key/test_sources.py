from __future__ import annotations

import importlib
import sys

import pytest

from torch_piecewise.cache_key import differences, import_name, source_ingredients, sources_again


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An imported package in a folder of its own."""
    folder = tmp_path / "checkout" / "my_models"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "net.py").write_text("SIZE = 4\n")
    (folder / "unused.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "checkout"))
    importlib.import_module("my_models.net")
    yield folder
    for name in ("my_models", "my_models.net"):
        sys.modules.pop(name, None)


def names(ingredient) -> list[str]:
    return [part.name for part in ingredient.value]


def told(ours, theirs) -> list[str]:
    return [str(one).split(":")[0] for one in differences([ours], [theirs])]


def test_a_file_goes_by_the_name_of_its_module(package):
    assert import_name(str(package / "net.py")) == "my_models.net"


def test_a_file_of_a_package_that_is_not_loaded_goes_by_its_path_inside(package):
    assert import_name(str(package / "unused.py")) == "my_models/unused.py"


def test_a_file_outside_any_package_goes_by_its_place_on_the_path(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "deep").mkdir()
    assert import_name(str(tmp_path / "script.py")) == "script.py"
    assert import_name(str(tmp_path / "deep" / "script.py")) == "deep/script.py"
    assert import_name("/nowhere/at/all.py") == "all.py"


def test_code_without_a_file_goes_by_its_own_name():
    assert import_name("<stdin>") == "<stdin>"


def test_sources_hold_no_absolute_path_and_are_sorted_and_distinct(package):
    files = [package / "unused.py", package / "net.py", str(package / "net.py")]
    found = source_ingredients(files)
    assert names(found) == ["my_models.net", "my_models/unused.py"]
    assert str(package) not in str(found)


def test_an_edited_file_is_named(package):
    before = source_ingredients([package / "net.py", package / "unused.py"])
    (package / "net.py").write_text("SIZE = 5\n")
    assert told(source_ingredients([package / "net.py", package / "unused.py"]), before) == [
        "sources.my_models.net"
    ]


def test_sources_are_found_again_by_name(package):
    before = source_ingredients([package / "net.py", package / "unused.py"])
    assert sources_again(names(before)) == before
    (package / "net.py").write_text("SIZE = 5\n")
    assert told(sources_again(names(before)), before) == ["sources.my_models.net"]


def test_sources_are_found_again_when_the_module_is_not_loaded_yet(package):
    before = source_ingredients([package / "net.py"])
    del sys.modules["my_models.net"]
    assert sources_again(names(before)) == before
    assert "my_models.net" not in sys.modules


def test_a_file_that_is_gone_differs(package):
    before = source_ingredients([package / "net.py", package / "unused.py"])
    (package / "net.py").unlink()
    (package / "unused.py").unlink()
    assert told(sources_again(names(before)), before) == [
        "sources.my_models.net",
        "sources.my_models/unused.py",
    ]
    assert sources_again(["no.such.module", "..", "", "no/such.py"]).value[0].value == "unreadable"


def test_two_files_of_one_name_count_together(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(folder)
    both = source_ingredients([tmp_path / "a" / "same.py", tmp_path / "b" / "same.py"])
    assert names(both) == ["same.py"]
    (tmp_path / "b" / "same.py").write_text("c")
    again = source_ingredients([tmp_path / "a" / "same.py", tmp_path / "b" / "same.py"])
    assert told(again, both) == ["sources.same.py"]


def test_interactive_code_counts_by_its_text():
    import linecache

    linecache.cache["<cell 1>"] = (2, None, ["x = 1\n"], "<cell 1>")
    first = source_ingredients(["<cell 1>"])
    linecache.cache["<cell 1>"] = (2, None, ["x = 2\n"], "<cell 1>")
    assert told(source_ingredients(["<cell 1>"]), first) == ["sources.<cell 1>"]
    del linecache.cache["<cell 1>"]
