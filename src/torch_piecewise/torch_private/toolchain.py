"""Inductor's C++ compiler: what it can do, and what it builds once for all kernels of a machine.

A process that has compiled nothing yet spends its first seconds on two things that are the same for every
model: torch compiles and loads a probe per vector instruction set, and it precompiles the header that every
kernel includes (``torch._inductor.cpu_vec_isa`` and ``codecache._precompile_header``; 2.11, 2.13).
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from torch._inductor import config
from torch._inductor.codecache import CppPythonBindingsCodeCache
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.cpu_vec_isa import supported_vec_isa_list, x86_isa_checker

_EMPTY_KERNEL = 'extern "C" void kernel(float* out) {}\n'


def build_shared_header(patches: Mapping[str, Any]) -> None:
    """Build what every CPU kernel needs, as the first kernel built under these settings would."""
    with config.patch(dict(patches)):
        # The header is built before the kernel is submitted; submitted, it is dropped.
        CppPythonBindingsCodeCache.load_pybinding_async(
            ["float*"], _EMPTY_KERNEL, submit_fn=lambda _task: None
        )


@functools.cache
def compiler_knows_this_cpu() -> bool:
    """Whether the C++ compiler takes the flags of every instruction set that torch finds in this CPU.

    Torch asks the CPU itself (cpuid), then builds a library with torch's headers to learn about the
    compiler, which takes seconds. Here the compiler is asked alone; where it refuses, or where it is no
    x86 CPU, torch is left to find out by itself.
    """
    present = x86_isa_checker()
    usable = [isa for isa in supported_vec_isa_list if present and set(str(isa).split()) <= set(present)]
    flags = [isa.build_arch_flags() for isa in usable]
    if not flags:
        return False
    try:
        command = [get_cpp_compiler(), *" ".join(flags).split(), "-E", "-x", "c++", os.devnull]
        # What torch itself would run.
        done = subprocess.run(command, capture_output=True, check=False, timeout=30)  # noqa: S603
    except (OSError, RuntimeError, subprocess.SubprocessError):  # no compiler, or a broken one
        return False
    return done.returncode == 0


def with_known_cpu(patches: Mapping[str, Any]) -> dict[str, Any]:
    """``patches`` of Inductor's configuration, with torch's own probes left out where they are not needed."""
    return {"cpp.vec_isa_ok": True, **patches} if compiler_knows_this_cpu() else dict(patches)
