from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_piecewise.cache_key import CpuRequirement, architecture_ingredient, host_cpu

flags = st.frozensets(st.sampled_from(["avx", "avx2", "avx512f", "fma", "bmi1", "amx_bf16"]))


def cpu(*names: str, capability: str = "AVX2", architecture: str = "x86_64") -> CpuRequirement:
    return CpuRequirement(architecture, capability, frozenset(names))


@given(flags, flags)
def test_an_artifact_runs_where_all_it_needs_is_there(needed, there):
    assert (cpu(*needed).unmet_on(cpu(*there)) == ()) == (needed <= there)


def test_what_is_missing_is_named():
    found = cpu("avx2", "avx512f", capability="AVX512").unmet_on(cpu("avx2"))
    assert [str(one) for one in found] == [
        "cpu.capability: AVX512 -> AVX2",
        "cpu.flags.avx512f: True -> (none)",
    ]


@pytest.mark.parametrize(
    ("needed", "host", "runs"),
    [
        ("DEFAULT", "AVX2", True),
        ("AVX2", "AVX512", True),
        ("AVX512", "AVX2", False),
        ("AVX2", "DEFAULT", False),
        ("SVE256", "SVE256", True),
        ("SVE256", "DEFAULT", False),
        ("AVX2", "NO AVX", False),
    ],
)
def test_a_capability_includes_the_ones_below_it(needed, host, runs):
    assert (cpu(capability=needed).unmet_on(cpu(capability=host)) == ()) == runs


def test_another_architecture_never_runs_it():
    assert cpu().unmet_on(cpu(architecture="aarch64")) != ()
    assert architecture_ingredient(cpu()) != architecture_ingredient(cpu(architecture="aarch64"))


def test_an_artifact_of_this_host_runs_on_this_host():
    assert host_cpu().unmet_on(host_cpu()) == ()
    assert host_cpu().capability == torch.backends.cpu.get_cpu_capability()


def test_it_comes_back_from_json():
    assert CpuRequirement.from_json(json.loads(json.dumps(host_cpu().as_json()))) == host_cpu()


@pytest.mark.parametrize("bad", [None, [], {}, {"architecture": 1}, {**cpu().as_json(), "flags": [1]}])
def test_a_mistyped_requirement_is_none(bad):
    assert CpuRequirement.from_json(bad) is None


def test_only_flags_that_compilers_use_are_read(tmp_path):
    x86 = tmp_path / "x86"
    x86.write_text(
        "processor : 0\nflags\t\t: fpu smep hypervisor sse4_2 avx2 constant_tsc f16c amx_int8\nflags : no\n"
    )
    assert host_cpu(cpuinfo=x86).flags == {"sse4_2", "avx2", "f16c", "amx_int8"}
    arm = tmp_path / "arm"
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd evtstrm cpuid sve\n")
    assert host_cpu(cpuinfo=arm).flags == {"fp", "asimd", "sve"}


def test_a_system_that_does_not_say_has_no_flags(tmp_path):
    assert host_cpu(cpuinfo=tmp_path / "none").flags == frozenset()


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="needs a CPU with more")
def test_a_smaller_capability_asked_of_aten_is_a_miss_that_names_it():
    code = (
        "from torch_piecewise.cache_key import host_cpu; import json; print(json.dumps(host_cpu().as_json()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        check=True,
    )
    smaller = CpuRequirement.from_json(json.loads(done.stdout))
    (found,) = host_cpu().unmet_on(smaller)
    assert str(found) == f"cpu.capability: {host_cpu().capability} -> DEFAULT"
    assert smaller.unmet_on(host_cpu()) == ()
