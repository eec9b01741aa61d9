"""The rules of ``tools/check_floors.py``, each on a package made for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_floors import FLOORS, problems, room_of


@pytest.fixture
def package(tmp_path):
    """Write a package from ``{module path: source}`` and tell what breaks the rules in it."""

    def check(files: dict[str, str]) -> list[str]:
        root = tmp_path / "torch_piecewise"
        for name, source in files.items():
            path = root / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return problems(root)

    return check


def line(path: str, text: str) -> str:
    return f"{Path('torch_piecewise') / path}{text}"


def test_an_import_of_a_lower_floor_is_allowed(package):
    assert package({"api": "from torch_piecewise.errors import ConfigError", "errors": ""}) == []


def test_an_import_of_a_higher_floor_is_named_with_its_line(package):
    found = package({"errors": "import os\nfrom torch_piecewise.api import compile", "api": ""})
    assert found == [line("errors.py", ":2: errors imports api, which does not stand below it")]


def test_an_import_of_the_same_floor_is_refused(package):
    found = package({"passes/base": "import torch_piecewise.store.base", "store/base": ""})
    assert found == [line("passes/base.py", ":1: passes imports store.base, which does not stand below it")]


def test_an_import_inside_a_function_counts(package):
    found = package({"errors": "def f():\n    from torch_piecewise import api", "api": ""})
    assert found == [line("errors.py", ":2: errors imports api, which does not stand below it")]


def test_the_door_is_above_the_library_and_below_what_is_built_with_it(package):
    files = {"__init__": "", "demo/run": "import torch_piecewise as tp", "config": "import torch_piecewise"}
    assert package(files) == [line("config.py", ":1: config imports __init__, which does not stand below it")]


def test_a_name_of_the_door_is_not_taken_for_a_module(package):
    assert package({"__init__": "compile = 1", "cli": "from torch_piecewise import compile"}) == []


def test_parts_of_one_room_import_each_other(package):
    files = {
        "config": "import torch_piecewise.config.kinds",
        "config_kinds": "",
        "passes/__init__": "from torch_piecewise.passes.base import P",
        "passes/base": "",
        "passes/one": "from torch_piecewise.passes.base import P",
    }
    assert package(files) == []


def test_parts_of_one_room_that_import_each_other_in_a_circle_are_named(package):
    files = {"store/a": "import torch_piecewise.store.b", "store/b": "import torch_piecewise.store.a"}
    (found,) = package(files)
    assert "in a circle" in found
    assert "store.a -> store.b" in found or "store.b -> store.a" in found


def test_a_module_that_no_room_lists_is_named(package):
    assert package({"novelty": ""}) == [
        line("novelty.py", ": stands in no room; list it in tools/check_floors.py")
    ]


def test_a_listed_module_need_not_exist(package):
    assert package({"errors": ""}) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "from torch._inductor import config",
        "from torch import _C",
        "import torch\nx = torch._C",
        "import torch\nx = torch.nn.functional._pad",
    ],
)
def test_a_private_torch_name_stands_in_its_room_only(package, source):
    (found,) = package({"capture": source, "torch_private_capture": source})
    assert found.startswith(line("capture.py", ":"))
    assert found.endswith("is private; reach it through torch_private")


@pytest.mark.parametrize(
    "source", ["import torch\ntorch.__version__", "import torch\ntorch.ops.aten._unsafe_view", "self._x"]
)
def test_version_operations_and_own_private_names_are_not_torchs_private_names(package, source):
    assert package({"capture": source}) == []


def test_the_runtime_imports_torch_and_the_standard_library_only(package):
    found = package({"runtime": "import json\nimport torch\nimport numpy as np"})
    assert found == [line("runtime.py", ":3: runtime imports numpy, but has to start without it")]


def test_a_relative_import_is_refused(package):
    found = package({"api": "from .errors import ConfigError", "errors": ""})
    assert found == [line("api.py", ":1: .errors.ConfigError is relative; write the whole name")]


def test_every_room_is_on_one_floor():
    rooms = [room for row in FLOORS.values() for room in row]
    assert len(rooms) == len(set(rooms))


def test_the_longest_room_name_wins():
    assert room_of("splitting_ops_definition") == "splitting_ops"
    assert room_of("splitting_plan") == "splitting"
