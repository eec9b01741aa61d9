"""What a machine's first compilation builds once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_a_compiler_that_is_missing_is_left_for_torch_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_piecewise.torch_private import toolchain

    def missing() -> str:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(toolchain, "get_cpp_compiler", missing)
    assert toolchain.compiler_knows_this_cpu.__wrapped__() is False
    monkeypatch.setattr(toolchain, "get_cpp_compiler", lambda: "false")
    assert toolchain.compiler_knows_this_cpu.__wrapped__() is False


@pytest.mark.slow
def test_kernels_use_the_header_that_was_built_before_them(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    done = subprocess.run(
        [sys.executable, "-c", HEADERS, str(tmp_path)], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "True"]
