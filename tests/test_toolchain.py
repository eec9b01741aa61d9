"""What a machine's first compilation builds once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("torch._inductor")

HEADERS = """
import sys
from pathlib import Path
from torch_piecewise.torch_private.toolchain import build_shared_header, with_known_cpu
from torch._inductor import config
from torch._inductor.codecache import CppPythonBindingsCodeCache

settings = with_known_cpu({})
build_shared_header(settings)
before = sorted(Path(sys.argv[1]).rglob("*.gch"))
with config.patch(settings):
    CppPythonBindingsCodeCache.load_pybinding(["float*"], 'extern "C" void kernel(float* x) {x[0] = 3;}')
print(len(before), before == sorted(Path(sys.argv[1]).rglob("*.gch")))
"""


def test_the_users_word_on_instruction_sets_beats_ours() -> None:
    from torch_piecewise.torch_private.toolchain import with_known_cpu

    assert with_known_cpu({"cpp.vec_isa_ok": False, "max_autotune": True}) == {
        "cpp.vec_isa_ok": False,
        "max_autotune": True,
    }


@pytest.fixture
def toolchain() -> Iterator[ModuleType]:
    from torch_piecewise.torch_private import toolchain

    toolchain.known_flags.cache_clear()
    yield toolchain
    toolchain.known_flags.cache_clear()


def test_a_compiler_that_is_missing_is_left_for_torch_to_report(
    toolchain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(toolchain, "get_cpp_compiler", missing)
    assert toolchain.compiler_knows_this_cpu() is False
    assert toolchain.with_known_cpu({"max_autotune": True}) == {"max_autotune": True}
    assert not toolchain.known_flags("/nowhere/g++")
    assert not toolchain.known_flags("false")


def test_an_old_compiler_is_known_to_lack_only_what_it_lacks(
    toolchain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "x86_isa_checker", lambda: ["avx2", "avx512"])
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: False)
    monkeypatch.setattr(toolchain, "_takes", lambda compiler, *flags: "-mavx512bf16" not in flags)
    assert {"-mavx2", "-mavx512f"} <= toolchain.known_flags("g++")
    assert "-mavx512bf16" not in toolchain.known_flags("g++")
    assert toolchain.compiler_knows_this_cpu() is True


PROBED = """
import sys
from torch._inductor import config
from torch._inductor.cpu_vec_isa import pick_vec_isa, supported_vec_isa_list
from torch_piecewise.torch_private.toolchain import vector_isa, with_known_cpu

with config.patch(with_known_cpu({})):
    isa = vector_isa() if sys.argv[1] == "ours" else pick_vec_isa()
    print(isa, isa.build_arch_flags(), *(str(one) for one in supported_vec_isa_list if one))
assert not any("check_build" in vars(one) for one in supported_vec_isa_list)
"""


def test_asking_about_flags_finds_what_torch_finds_by_building(tmp_path: Path) -> None:
    """In processes of their own: torch decides once in a process."""
    assert run(PROBED, tmp_path / "ours", "ours") == run(PROBED, tmp_path / "torchs", "torch")
    assert not list((tmp_path / "ours").rglob("*.so"))


@pytest.mark.slow
def test_kernels_use_the_header_that_was_built_before_them(tmp_path: Path) -> None:
    assert run(HEADERS, tmp_path, str(tmp_path)).split() == ["1", "True"]


def run(program: str, folder: Path, *arguments: str) -> str:
    """What ``program`` prints in a process whose caches are in ``folder``."""
    folder.mkdir(exist_ok=True)
    env = {**os.environ, "TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout


FIRST = """
import builtins, importlib, sys, torch

asked = []
real = builtins.__import__


def noting(name, *rest):
    if name.startswith(("torch._dynamo", "torch._inductor")):
        asked.append(name)
    return real(name, *rest)


builtins.__import__ = noting
importlib.import_module("torch_piecewise.torch_private." + sys.argv[1])
print(asked[0])
"""


@pytest.mark.parametrize("module", ["dynamo", "toolchain", "inductor_settings"])
def test_torchs_compiler_is_loaded_from_where_torch_compile_begins(tmp_path: Path, module: str) -> None:
    """Its modules import each other in circles: a thread that begins elsewhere would see half of them."""
    assert run(FIRST, tmp_path, module).strip() == "torch._dynamo.backends.registry"
