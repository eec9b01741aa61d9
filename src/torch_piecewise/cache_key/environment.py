"""Ingredients about where a program is compiled: library, torch, Python, compiler, devices, ranks."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from torch_piecewise.cache_key.base import Ingredient, short_digest
from torch_piecewise.cache_key.values import Describer

_PACKAGE = "torch_piecewise"
_DISTRIBUTION = "torch-piecewise"


def library_ingredient() -> Ingredient:
    """This library: its version, and its source, which changes without it while one works on the library."""
    try:
        version = importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    folder = Path(__file__).parent.parent
    texts = [
        f"{path.relative_to(folder).as_posix()} {short_digest(path.read_bytes())}"
        for path in sorted(folder.rglob("*.py"))
    ]
    return Ingredient(
        "library", (Ingredient("version", version), Ingredient("source", short_digest("\n".join(texts))))
    )


def torch_ingredient() -> Ingredient:
    """torch: version, commit and how it was built."""
    # The rest of the text tells of the host; the settings are one line of it.
    shown = torch.__config__.show().splitlines()
    settings = next((line for line in shown if "Build settings:" in line), "")
    parts = {
        "version": torch.__version__,
        "git_version": torch.version.git_version,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "debug": torch.version.debug,
        "cxx11_abi": torch.compiled_with_cxx11_abi(),
        "build_settings": short_digest(settings),
    }
    return Ingredient("torch", tuple(Ingredient(name, _scalar(value)) for name, value in parts.items()))


def python_ingredient() -> Ingredient:
    """The interpreter: feature version, binary interface, and whether asserts run."""
    parts = {
        "implementation": sys.implementation.name,
        "version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "abi": str(sysconfig.get_config_var("SOABI")),
        "bytecode": importlib.util.MAGIC_NUMBER.hex(),
        "optimize": sys.flags.optimize,
    }
    return Ingredient("python", tuple(Ingredient(name, _scalar(value)) for name, value in parts.items()))


def compiler_ingredient(name: str, fingerprint: str | Mapping[str, Any]) -> Ingredient:
    """A compiler by its name and what its ``fingerprint()`` says."""
    value = {"fingerprint": fingerprint} if isinstance(fingerprint, str) else dict(fingerprint)
    return Ingredient("compiler", (Ingredient("name", name), *_described("compiler", value)))


def config_ingredient(config: object, *, without: Iterable[str] = ()) -> Ingredient:
    """Settings, field by field.

    Args:
        config: a dataclass instance or a mapping by field name.
        without: fields that do not change what is compiled, such as the cache's own place.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    elif isinstance(config, Mapping):
        values = dict(config)
    else:
        values = dict(vars(config))
    left_out = frozenset(without)
    kept = {name: value for name, value in values.items() if name not in left_out}
    return Ingredient("config", _described("config", kept))


def passes_ingredient(passes: Iterable[tuple[str, str]]) -> Ingredient:
    """Graph passes in the order in which they run, each by its name and ``uuid()``."""
    return Ingredient(
        "passes", tuple(Ingredient(f"{number}:{name}", uuid) for number, (name, uuid) in enumerate(passes))
    )


def device_ingredient(
    device: torch.device, *, properties: Callable[[torch.device], Any] | None = None
) -> Ingredient:
    """The kind of a device, not which of several alike: name, capability and what tuning depends on.

    Args:
        properties: asks a device; None asks torch. Called for CUDA and ROCm devices only.
    """
    parts: dict[str, Any] = {"type": device.type}
    if device.type == "cuda":
        told = (properties or torch.cuda.get_device_properties)(device)
        parts["name"] = told.name
        parts["capability"] = f"{told.major}.{told.minor}"
        parts["multi_processor_count"] = told.multi_processor_count
        parts["architecture"] = getattr(told, "gcnArchName", None) if torch.version.hip else None
    return Ingredient("device", tuple(Ingredient(name, _scalar(value)) for name, value in parts.items()))


def threads_ingredient(threads: int | None = None) -> Ingredient:
    """Threads of a parallel region; generated CPU code depends on their number. None: as torch is set now."""
    return Ingredient("threads", torch.get_num_threads() if threads is None else threads)


def tag_ingredient(tag: str, *, is_encoder: bool = False) -> Ingredient:
    """Which part of a model it is."""
    return Ingredient("tag", (Ingredient("name", tag), Ingredient("is_encoder", is_encoder)))


def topology_ingredient(
    *, rank: int = 0, world_size: int = 1, groups: Mapping[str, int] | None = None
) -> Ingredient:
    """The place among the ranks.

    Args:
        groups: size of each named dim of the device mesh, such as ``{"tp": 2, "pp": 4}``.
    """
    sizes = tuple(Ingredient(name, size) for name, size in sorted((groups or {}).items()))
    return Ingredient(
        "ranks", (Ingredient("rank", rank), Ingredient("world_size", world_size), Ingredient("groups", sizes))
    )


def variables_ingredient(names: Iterable[str], env: Mapping[str, str] = os.environ) -> Ingredient:
    """Declared environment variables by value; one that is not set is None."""
    return Ingredient("environment", tuple(Ingredient(name, env.get(name)) for name in sorted(set(names))))


def _described(path: str, values: Mapping[str, Any]) -> tuple[Ingredient, ...]:
    return Describer().attributes({str(name): value for name, value in values.items()}, path)


def _scalar(value: object) -> str | int | bool | None:
    if value is None or isinstance(value, bool | int):
        return value
    return str(value)
