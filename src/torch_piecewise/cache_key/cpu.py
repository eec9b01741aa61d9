"""CPU instruction sets: an artifact needs a subset of what its host has.

This is no part of the digest. A host with more than was needed runs the artifact, so equality would refuse
what works; what an artifact needs is kept with it and compared when it is loaded.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torch_piecewise.cache_key.base import Ingredient
from torch_piecewise.cache_key.explain import Absent, Difference
from torch_piecewise.runtime.host import CPUINFO, capability_includes, cpu_flags


@dataclass(frozen=True)
class CpuRequirement:
    """What a host has, or what an artifact made on a host may need: the same thing seen from two sides.

    Attributes:
        architecture: ``x86_64``, ``aarch64``, ...
        capability: of ATen's own kernels; follows ``ATEN_CPU_CAPABILITY``.
        flags: instruction sets that compilers use, as the system names them; empty where it does not say.
    """

    architecture: str
    capability: str
    flags: frozenset[str]

    def as_json(self) -> dict[str, Any]:
        """For the ``meta`` of an entry."""
        return {
            "architecture": self.architecture,
            "capability": self.capability,
            "flags": sorted(self.flags),
        }

    @classmethod
    def from_json(cls, document: object) -> CpuRequirement | None:
        """From the ``meta`` of an entry; None if it is not one."""
        if not isinstance(document, Mapping):
            return None
        architecture, capability = document.get("architecture"), document.get("capability")
        flags = document.get("flags")
        if not isinstance(architecture, str) or not isinstance(capability, str):
            return None
        if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
            return None
        return cls(architecture, capability, frozenset(flags))

    def unmet_on(self, host: CpuRequirement) -> tuple[Difference, ...]:
        """What the artifact needs and ``host`` does not have; empty if it can run there."""
        unmet = []
        if self.architecture != host.architecture:
            unmet.append(Difference("cpu.architecture", host.architecture, self.architecture))
        if not capability_includes(host.capability, self.capability):
            unmet.append(Difference("cpu.capability", host.capability, self.capability))
        # A host that does not say what it has is given the benefit of the doubt only if nothing is asked.
        unmet += [Difference(f"cpu.flags.{flag}", Absent(), True) for flag in sorted(self.flags - host.flags)]
        return tuple(unmet)


def host_cpu(*, cpuinfo: Path = CPUINFO) -> CpuRequirement:
    """What this host has, as this process may use it.

    Args:
        cpuinfo: the kernel's list of flags; a file that is not there gives none.
    """
    return CpuRequirement(platform.machine(), torch.backends.cpu.get_cpu_capability(), cpu_flags(cpuinfo))


def architecture_ingredient(host: CpuRequirement) -> Ingredient:
    """The part of a CPU that *is* in the digest: code for another architecture never runs."""
    return Ingredient("cpu", (Ingredient("architecture", host.architecture),))
