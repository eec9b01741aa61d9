"""Inductor's C++ compiler: what it can do, and what it builds once for all kernels of a machine.

A process that has compiled nothing yet spends its first seconds on two things that are the same for every
model: torch compiles and loads probes of the vector instruction sets, and it precompiles the header that
every kernel includes (``torch._inductor.cpu_vec_isa`` and ``codecache._precompile_header``; 2.11, 2.13). It
does one after the other when it meets the first kernel. Here the compiler is asked about its flags instead of
being made to build probes, and the header is begun at once.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import os
import subprocess
import threading
from collections.abc import Mapping
from typing import Any

import torch
import torch._dynamo.backends.registry  # first: torch.compile begins there, on other threads too
from torch._inductor import config
from torch._inductor.codecache import (
    CppPythonBindingsCodeCache,
    _get_cpp_prefix_header,
    _precompile_header,
)
from torch._inductor.cpp_builder import CppBuilder, CppTorchDeviceOptions, get_cpp_compiler
from torch._inductor.cpu_vec_isa import (
    VecISA,
    pick_vec_isa,
    supported_vec_isa_list,
    x86_isa_checker,
)

from torch_piecewise.torch_private.settings import patched_beside_compiles

logger = logging.getLogger("torch_piecewise")


class _Locks:
    def __init__(self) -> None:
        self.header = threading.Lock()
        self.asking = threading.Lock()


_locks = _Locks()
# A thread that holds one is not there in a child, and would never give it back.
os.register_at_fork(after_in_child=_locks.__init__)  # type: ignore[misc]

_HEAD_START_SECONDS = 0.4
"""torch needs 0.2 s of Python before it starts the C++ compiler, and twice that beside another thread. All
that comes after waits for that compiler."""


def begin_shared_header(patches: Mapping[str, Any]) -> None:
    """Have :func:`build_shared_header` done beside this thread, with a head start."""
    # Settings of torch are the context's (2.13).
    arguments = (_try_shared_header, patches)
    thread = threading.Thread(target=contextvars.copy_context().run, args=arguments, daemon=True)
    thread.start()
    thread.join(_HEAD_START_SECONDS)


def _try_shared_header(patches: Mapping[str, Any]) -> None:
    try:
        build_shared_header(patches)
    except Exception as error:  # noqa: BLE001 - told by the first kernel that needs it, which meets it again
        logger.debug("no shared header: %s", error)


def build_shared_header(patches: Mapping[str, Any]) -> None:
    """Build what every CPU kernel needs, as the first kernel built under these settings would.

    Quick where it is there already. Others wait for one that is being built.

    As ``CppPythonBindingsCodeCache.load_async`` builds it for code without a part of its own for the kernel
    (2.11, 2.13). One that is built otherwise would be found missing later and built again.
    """
    header = _get_cpp_prefix_header("cpu")
    # Here, and not each with a preprocessor of its own for the lock file in torch's function.
    with patched_beside_compiles(config, patches), _locks.header:
        if header is None or not config.cpp_cache_precompile_headers:
            return
        options = {
            **CppPythonBindingsCodeCache.cpp_compile_command_flags,
            "device_type": "cpu",
            "extra_flags": (),
            "use_relative_path": False,
            "vec_isa": vector_isa(),
        }
        named = CppTorchDeviceOptions(compile_only=False, min_optimize=False, **options)
        command = CppBuilder(name="o", sources="i", BuildOption=named).get_command_line()
        _precompile_header(header, command, min_optimize=False, **options)


def vector_isa() -> VecISA:
    """The vector instruction set that kernels are made for under the settings in force.

    ``pick_vec_isa`` decides once in a process. Where ``cpp.vec_isa_ok`` tells it that the common sets can be
    built for, it still builds and loads a library for each further one, six of them where the CPU has AMX
    (2.11, 2.13; https://github.com/pytorch/pytorch/issues/100378 and 140970), and nothing tells it about
    those. So the objects that it asks ask the compiler about its flags instead, for the length of the call.
    """
    if not config.cpp.vec_isa_ok:
        return pick_vec_isa()
    with _locks.asking:
        for isa in supported_vec_isa_list:
            vars(isa)["check_build"] = functools.partial(_knows_flags_of, isa)
        try:
            return pick_vec_isa()
        finally:
            for isa in supported_vec_isa_list:
                del vars(isa)["check_build"]


def _knows_flags_of(isa: VecISA, _code: str) -> bool:
    return set(isa.build_arch_flags().split()) <= known_flags(_compiler())


def compiler_knows_this_cpu() -> bool:
    """Whether the C++ compiler takes the flags of every instruction set that torch finds in this CPU.

    Torch asks the CPU itself (cpuid), then builds a library with torch's headers to learn about the
    compiler, which takes seconds. Here the compiler is asked alone; where it refuses, or where it is no
    x86 CPU, torch is left to find out by itself.
    """
    flags = _flags_of_this_cpu()
    return bool(flags) and flags <= known_flags(_compiler())


def _compiler() -> str:
    """The C++ compiler under the settings in force; empty where there is none."""
    try:
        return get_cpp_compiler()
    except RuntimeError:
        return ""


@functools.cache
def known_flags(compiler: str) -> frozenset[str]:
    """Of the flags for what this CPU can do, those that ``compiler`` takes."""
    flags = set(_flags_of_this_cpu())
    if torch.cpu._is_avx512_bf16_supported():
        flags.add("-mavx512bf16")
    if torch.cpu._is_amx_fp16_supported():
        flags.add("-mamx-fp16")
    if _takes(compiler, *sorted(flags)):
        return frozenset(flags)
    return frozenset(flag for flag in flags if _takes(compiler, flag))


def _flags_of_this_cpu() -> frozenset[str]:
    """The common flags of every instruction set that torch finds in this CPU."""
    present = set(x86_isa_checker())
    sets = [isa for isa in supported_vec_isa_list if present and set(str(isa).split()) <= present]
    return frozenset(flag for isa in sets for flag in isa._arch_flags.split())


def _takes(compiler: str, *flags: str) -> bool:
    try:
        command = [compiler, *flags, "-E", "-x", "c++", os.devnull]
        # What torch itself would run.
        done = subprocess.run(command, capture_output=True, check=False, timeout=30)  # noqa: S603
    except (OSError, subprocess.SubprocessError):  # no compiler, or a broken one
        return False
    return done.returncode == 0


def with_known_cpu(patches: Mapping[str, Any]) -> dict[str, Any]:
    """``patches`` of Inductor's configuration, with torch's own probes left out where they are not needed."""
    with patched_beside_compiles(config, patches):
        if not compiler_knows_this_cpu():
            return dict(patches)
    settings = {"cpp.vec_isa_ok": True, **patches}
    if settings["cpp.vec_isa_ok"]:
        with patched_beside_compiles(config, settings):
            vector_isa()  # decides for the process, before torch does it in its way
    return settings
