"""Checks of what the library needs on a machine, each with what to do where it is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Literal, Self

import torch

from torch_piecewise.cache_cli.base import entries_of, show_size
from torch_piecewise.cache_key import host_cpu
from torch_piecewise.config import Config
from torch_piecewise.errors import ConfigError, StoreError, UntrustedError
from torch_piecewise.store.root import cache_root

State = Literal["ok", "warn", "fail"]

OLDEST_TORCH = (2, 11)
NEWEST_TESTED_TORCH = (2, 13)
OLDEST_PYTHON = (3, 11)
_LITTLE_SPACE = 1024**3


@dataclass(frozen=True)
class Finding:
    """One checked thing.

    Attributes:
        what: the thing.
        state: ``ok``; ``warn``, something will not work or be slow; ``fail``, nothing will work.
        text: what was found.
        mend: what to do; empty for ``ok``.
    """

    what: str
    state: State
    text: str
    mend: str = ""


@dataclass(frozen=True)
class Host:
    """Where is looked; tests give another one.

    Attributes:
        env: environment variables.
        root: the cache root; None as the library finds it.
        torch, python: their versions.
        has_module: whether a module can be imported.
    """

    env: Mapping[str, str]
    root: Path | None = None
    torch: str = torch.__version__
    python: tuple[int, ...] = field(default_factory=lambda: tuple(sys.version_info[:3]))
    include: Path = field(default_factory=lambda: Path(sysconfig.get_path("include")))
    has_module: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None

    @classmethod
    def here(cls) -> Self:
        """This process's host."""
        return cls(env=os.environ)


def examine(host: Host) -> list[Finding]:
    """Every check, in order."""
    checks = (
        _versions,
        _entry_point,
        _compiler,
        _headers,
        _cpu,
        _cuda,
        _cache,
        _temporary,
        _settings,
        _extras,
    )
    return [finding for check in checks for finding in check(host)]


def _versions(host: Host) -> Iterator[Finding]:
    python = ".".join(map(str, host.python))
    if host.python[:2] < OLDEST_PYTHON:
        yield Finding("python", "fail", python, "use Python 3.11 or newer")
    else:
        yield Finding("python", "ok", f"{python}, {platform.system()} {platform.machine()}")
    number = _number(host.torch)
    if number < OLDEST_TORCH:
        yield Finding("torch", "fail", host.torch, "install torch 2.11 or newer")
    elif number > NEWEST_TESTED_TORCH:
        newest = ".".join(map(str, NEWEST_TESTED_TORCH))
        yield Finding("torch", "warn", f"{host.torch}, newer than what was tested", f"{newest} was tested")
    else:
        yield Finding("torch", "ok", host.torch)


def _number(text: str) -> tuple[int, ...]:
    parts = text.partition("+")[0].split(".")[:2]
    return tuple(int(part) if part.isdigit() else 0 for part in parts)


def _entry_point(host: Host) -> Iterator[Finding]:
    try:
        own = version("torch-piecewise")
    except PackageNotFoundError:
        own = "not installed"
    found = [one for one in entry_points(group="torch_dynamo_backends") if one.name == "piecewise"]
    if found:
        yield Finding("library", "ok", f"torch-piecewise {own}; torch.compile(backend='piecewise') finds it")
        return
    yield Finding(
        "library",
        "warn",
        f"torch-piecewise {own}; torch.compile(backend='piecewise') does not find it",
        "install it (pip install torch-piecewise, or pip install -e . in a clone); tp.compile works without",
    )


def _compiler(host: Host) -> Iterator[Finding]:
    wanted = host.env.get("CXX") or "g++"
    path = shutil.which(wanted, path=host.env.get("PATH"))
    if path is None:
        yield Finding(
            "compiler",
            "warn",
            f"no {wanted}: nothing new can be compiled for the CPU",
            "install g++ (apt-get install g++), or set CXX; a start from the store needs none",
        )
        return
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=30)  # noqa: S603 - the compiler that torch would run
    if done.returncode == 0:
        yield Finding("compiler", "ok", (done.stdout.splitlines() or [path])[0])
    else:
        yield Finding("compiler", "fail", f"{path} does not run", "reinstall it, or set CXX to another")


def _headers(host: Host) -> Iterator[Finding]:
    if (host.include / "Python.h").is_file():
        yield Finding("headers", "ok", f"Python.h in {host.include}")
    else:
        yield Finding(
            "headers",
            "warn",
            f"no Python.h in {host.include}: Inductor cannot build its CPU code",
            "install Python's headers (apt-get install python3-dev)",
        )


def _cpu(host: Host) -> Iterator[Finding]:
    found = host_cpu()
    vectors = [flag for flag in ("avx512f", "avx2", "amx_tile", "sve", "asimd") if flag in found.flags]
    text = f"{found.architecture}, torch uses {found.capability}, has {', '.join(vectors) or 'no vectors'}"
    if found.capability != "DEFAULT" or found.architecture != "x86_64":
        yield Finding("cpu", "ok", text)
        return
    mend = "unset ATEN_CPU_CAPABILITY" if "ATEN_CPU_CAPABILITY" in host.env else "use a CPU with AVX2"
    yield Finding("cpu", "warn", f"{text}: code without vectors is slow", mend)


def _cuda(host: Host) -> Iterator[Finding]:
    if torch.version.cuda is None and torch.version.hip is None:
        yield Finding("cuda", "ok", "this torch is built for the CPU")
        return
    if not torch.cuda.is_available():
        yield Finding(
            "cuda",
            "warn",
            f"torch is built for CUDA {torch.version.cuda}, and no device can be used",
            "see nvidia-smi for the driver; CUDA_VISIBLE_DEVICES may hide devices",
        )
        return
    for index in range(torch.cuda.device_count()):
        told = torch.cuda.get_device_properties(index)
        memory = show_size(told.total_memory)
        yield Finding("cuda", "ok", f"{told.name}, capability {told.major}.{told.minor}, {memory}")
    if not host.has_module("triton"):
        yield Finding(
            "triton", "fail", "not installed: nothing can be compiled for CUDA", "pip install triton"
        )


def _cache(host: Host) -> Iterator[Finding]:
    try:
        root = host.root or cache_root(host.env)
        entries = entries_of(root)
    except UntrustedError as error:
        yield Finding("cache", "fail", f"{error.what} ({error.got})", error.hint or "")
        return
    except StoreError as error:
        yield Finding("cache", "fail", error.what, error.hint or "set TORCH_PIECEWISE_CACHE_DIR")
        return
    there = _existing(root)
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding(
            "cache",
            "warn",
            f"{root} cannot be written to: {len(entries)} entries are read, nothing new is kept",
            f"give this user write permission on {there}, or set TORCH_PIECEWISE_CACHE_DIR",
        )
        return
    free = shutil.disk_usage(there).free
    text = f"{root}: {len(entries)} entries, {show_size(sum(one.size for one in entries))}"
    if free < _LITTLE_SPACE:
        mend = "torch-piecewise cache prune --limit 1GiB, or another folder in TORCH_PIECEWISE_CACHE_DIR"
        yield Finding("cache", "warn", f"{text}, only {show_size(free)} free", mend)
    else:
        yield Finding("cache", "ok", f"{text}, {show_size(free)} free")
    yield from _runnable("cache", there, "TORCH_PIECEWISE_CACHE_DIR")


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


def _temporary(host: Host) -> Iterator[Finding]:
    folder = Path(tempfile.gettempdir())
    found = list(_runnable("temporary", folder, "TMPDIR"))
    yield from found or [
        Finding("temporary", "ok", f"{folder}, {show_size(shutil.disk_usage(folder).free)} free")
    ]


def _runnable(what: str, folder: Path, variable: str) -> Iterator[Finding]:
    """Machine code is loaded from there, which a file system can forbid."""
    if not hasattr(os, "statvfs") or not os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        return
    yield Finding(
        what,
        "fail",
        f"{folder} is mounted noexec: compiled code cannot be loaded from it",
        f"set {variable} to a folder on another file system",
    )


def _settings(host: Host) -> Iterator[Finding]:
    try:
        config = Config.from_env(host.env)
    except ConfigError as error:
        yield Finding("settings", "fail", error.what, error.hint or f"expected {error.expected}")
        return
    yield Finding("settings", "ok", ", ".join(sorted(config.explicit)) or "none in the environment")


def _extras(host: Host) -> Iterator[Finding]:
    if host.has_module("jinja2"):
        yield Finding("report", "ok", "jinja2 is there: the page can be made")
    else:
        yield Finding(
            "report",
            "warn",
            "no jinja2: reports as JSON only",
            "pip install 'torch-piecewise[report]'",
        )
