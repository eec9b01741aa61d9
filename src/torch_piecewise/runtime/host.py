"""What a bundle was made for, and what this machine is."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from torch_piecewise.errors import BundleError

# What compilers emit by themselves for -march=native, as the kernel spells it. Flags of the kernel, of power
# saving or of virtualisation differ between hosts that run the same code.
_PREFIXES = ("sse", "ssse", "avx", "amx", "fma", "bmi", "sve", "asimd")
_WORDS = """
    pni f16c popcnt lzcnt abm movbe cx16 xop tbm gfni aes vaes pclmulqdq vpclmulqdq sha_ni adx rdrand rdseed
    fp fphp neon vfpv4 atomics bf16 i8mm lrcpc fcma jscvt sme sme2
"""
_NAMES = frozenset(_WORDS.split())

_LEVELS = ("DEFAULT", "AVX2", "AVX512")
"""Capabilities of ATen of which each includes those before it."""

CPUINFO = Path("/proc/cpuinfo")


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The instruction sets of this CPU that compilers use; empty where the system does not say."""
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    words = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return _of_compilers(words.split())


def capability_includes(host: str, needed: str) -> bool:
    """Whether kernels for ATen's capability ``needed`` run where it is ``host``."""
    if host in _LEVELS and needed in _LEVELS:
        return _LEVELS.index(host) >= _LEVELS.index(needed)
    return host == needed


def _of_compilers(words: Iterable[str]) -> frozenset[str]:
    return frozenset(word for word in words if word.startswith(_PREFIXES) or word in _NAMES)


def this_host(devices: Iterable[str]) -> dict[str, Any]:
    """What a bundle made here is for, as JSON.

    Args:
        devices: kinds of devices that its tensors are on.
    """
    kinds = sorted(set(devices) or {"cpu"})
    return {
        "torch": torch.__version__,
        "architecture": platform.machine(),
        "system": platform.system(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "flags": sorted(cpu_flags()),
        "devices": {
            kind: list(torch.cuda.get_device_capability()) if kind == "cuda" else None for kind in kinds
        },
    }


def check_host(made_for: Mapping[str, Any], *, has_code: bool, cpuinfo: Path = CPUINFO) -> None:
    """Refuse a bundle that cannot run here.

    Args:
        made_for: as :func:`this_host` said where it was made.
        has_code: whether it holds machine code; what is Python alone runs on any CPU.

    Raises:
        BundleError: names the first thing that differs.
    """
    if made_for["torch"] != torch.__version__:
        raise _other("torch", made_for["torch"], torch.__version__, "install that version, or bake it again")
    for kind, capability in made_for["devices"].items():
        if kind == "cuda":
            _check_cuda(capability)
    if not has_code:
        return
    for name, here in (("architecture", platform.machine()), ("system", platform.system())):
        if made_for[name] != here:
            raise _other(f"CPU {name}" if name == "architecture" else name, made_for[name], here)
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability_includes(capability, made_for["capability"]):
        raise _other("CPU capability", made_for["capability"], capability)
    missing = sorted(set(made_for["flags"]) - cpu_flags(cpuinfo))
    if missing:
        raise _other("CPU", f"one with {', '.join(missing)}", f"one without {', '.join(missing)}")


def _check_cuda(capability: list[int]) -> None:
    if not torch.cuda.is_available():
        raise _other("device", "a CUDA device", "none is available")
    here = list(torch.cuda.get_device_capability())
    if here != capability:
        raise _other("CUDA compute capability", ".".join(map(str, capability)), ".".join(map(str, here)))


def _other(what: str, expected: str, got: str, hint: str | None = None) -> BundleError:
    return BundleError(
        f"The bundle was made for another {what}",
        expected=expected,
        got=got,
        hint=hint or "bake it on a machine like this one",
    )
