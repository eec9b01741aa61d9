from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from torch import fx

from torch_piecewise.passes.base import GraphPass
from torch_piecewise.passes.context import get_pass_context
from torch_piecewise.ranges import Range


def fuse(graph: fx.Graph) -> int:
    return 0


def only_small() -> bool:
    return get_pass_context().compile_range.end < 16


@dataclass(frozen=True)
class FuseRMSNorm(GraphPass):
    eps: float = 1e-6
    kinds: frozenset[str] = frozenset({"rms", "layer", "group", "batch"})

    def __call__(self, graph: fx.Graph) -> int:
        return fuse(graph)


class Plain(GraphPass):
    def __call__(self, graph: fx.Graph) -> None:
        return None


class WithHelper(Plain):
    helpers: ClassVar[tuple[object, ...]] = (fuse,)


class AsksForRange(Plain):
    def __call__(self, graph: fx.Graph) -> None:
        only_small()


def test_options_are_fields_and_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        FuseRMSNorm().eps = 1.0  # type: ignore[misc]
    assert FuseRMSNorm(eps=1e-5) == FuseRMSNorm(eps=1e-5)


def test_a_pass_without_a_call_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        GraphPass()  # type: ignore[abstract]


def test_the_name_is_the_class_in_lower_case():
    assert FuseRMSNorm().name == "fuse_rmsnorm"
    assert WithHelper().name == "with_helper"


def test_a_pass_applies_to_every_range_unless_it_says_otherwise():
    assert FuseRMSNorm().is_applicable_for_range(Range(1, 8))


def test_equal_passes_have_one_uuid_and_other_options_another():
    assert FuseRMSNorm().uuid() == FuseRMSNorm().uuid()
    assert FuseRMSNorm().uuid() != FuseRMSNorm(eps=1e-5).uuid()


def test_classes_have_different_uuids():
    assert len({Plain().uuid(), WithHelper().uuid(), AsksForRange().uuid()}) == 3


def test_a_declared_helper_counts():
    assert f"{__name__}.fuse" in WithHelper().identity().names
    assert f"{__name__}.fuse" not in Plain().identity().names


def test_a_helper_that_the_code_names_counts():
    assert f"{__name__}.fuse" in FuseRMSNorm().identity().names


def test_a_pass_that_asks_for_the_range_through_a_helper_is_known_to():
    assert AsksForRange().reads_range()
    assert not FuseRMSNorm().reads_range()


def test_a_pass_that_cannot_be_looked_into_may_ask_for_the_range():
    class Opaque(Plain):
        secret = lambda self: None  # noqa: E731

        def uuid(self) -> str:
            return "mine"

    assert Opaque().reads_range()


PROGRAM = """
from dataclasses import dataclass
from torch_piecewise.passes.base import GraphPass
from torch_piecewise.passes.manager import PassManager
from torch_piecewise.passes.noop_elimination import NoopElimination
from torch_piecewise.passes.defunctionalize import Defunctionalize

NAMES = {"alpha", "beta", "gamma", "delta"}

@dataclass(frozen=True)
class Mine(GraphPass):
    kinds: frozenset = frozenset({"rms", "layer", "group", "batch"})
    sizes: tuple = (1, 2.5, None)

    def __call__(self, graph):
        return len(NAMES & self.kinds)

def uuids():
    return Mine().uuid(), PassManager([Mine(), NoopElimination(), Defunctionalize()]).uuid()

if __name__ == "__main__":
    print(*uuids())
"""


def test_uuids_are_the_same_in_every_process_and_folder(tmp_path, monkeypatch):
    here, there = tmp_path / "here" / "module.py", tmp_path / "there" / "program.py"
    for file in (here, there):
        file.parent.mkdir()
        file.write_text(PROGRAM)
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1",
        "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
    }
    command = [sys.executable, str(there)]
    run = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=240
    )
    spec = importlib.util.spec_from_file_location("module_here", here)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "module_here", module)
    spec.loader.exec_module(module)
    assert run.stdout.split() == list(module.uuids())
