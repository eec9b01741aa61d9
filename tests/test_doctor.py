"""Each check of the doctor, on a host made for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from torch_piecewise.doctor import Finding, Host, examine


@pytest.fixture
def found(tmp_path: Path) -> Any:
    """The finding about one thing on a host that differs from a sound one in what is given."""

    def found(what: str, **differs: Any) -> Finding:
        bin_folder = tmp_path / "bin"
        if not bin_folder.exists():
            bin_folder.mkdir()
            (tmp_path / "Python.h").touch()
            tool(bin_folder / "g++", "echo 'g++ 12.2.0'")
        host = Host(
            **{
                "env": {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"},
                "root": tmp_path / "root",
                "torch": "2.13.0+cpu",
                "python": (3, 11, 7),
                "include": tmp_path,
                "has_module": lambda name: True,
                **differs,
            }
        )
        return next(one for one in examine(host) if one.what == what)

    return found


def tool(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("what", ["python", "torch", "compiler", "headers", "cache", "settings", "report"])
def test_a_sound_host_is_ok(found: Any, what: str) -> None:
    one = found(what)
    assert (one.state, one.mend) == ("ok", "")


@pytest.mark.parametrize(
    ("differs", "what", "state", "text"),
    [
        ({"python": (3, 10, 1)}, "python", "fail", "3.10.1"),
        ({"torch": "2.10.1"}, "torch", "fail", "2.10.1"),
        ({"torch": "2.11.0+cu130"}, "torch", "ok", "2.11.0+cu130"),
        ({"torch": "2.14.0.dev2026"}, "torch", "warn", "newer than what was tested"),
        ({"env": {"PATH": "/nonexistent"}}, "compiler", "warn", "no g++: nothing new can be compiled"),
        ({"env": {"PATH": "/nonexistent", "CXX": "my-c++"}}, "compiler", "warn", "no my-c++"),
        ({"include": Path("/nonexistent")}, "headers", "warn", "no Python.h in /nonexistent"),
        (
            {"env": {"TORCH_PIECEWISE_BACKED": "x"}},
            "settings",
            "fail",
            "TORCH_PIECEWISE_BACKED names no field",
        ),
        ({"env": {"TORCH_PIECEWISE_ON_MISS": "error"}}, "settings", "ok", "on_miss"),
        ({"has_module": lambda name: name != "jinja2"}, "report", "warn", "no jinja2"),
        (
            {"root": None, "env": {"TORCH_PIECEWISE_CACHE_DIR": "a/b"}},
            "cache",
            "fail",
            "not an absolute path",
        ),
    ],
)
def test_what_is_missing_is_told_with_what_to_do(
    found: Any, differs: dict[str, Any], what: str, state: str, text: str
) -> None:
    one = found(what, **differs)
    assert one.state == state
    assert text in one.text
    assert bool(one.mend) == (state != "ok")


def test_a_compiler_that_does_not_run_fails(found: Any, tmp_path: Path) -> None:
    tool(tmp_path / "broken", "exit 3")
    one = found("compiler", env={"CXX": str(tmp_path / "broken"), "PATH": os.environ["PATH"]})
    assert (one.state, one.mend) == ("fail", "reinstall it, or set CXX to another")


def test_a_cache_that_others_can_write_to_fails_with_the_command_that_mends_it(
    found: Any, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root").chmod(0o777)
    one = found("cache")
    assert one.state == "fail"
    assert f"chmod -R go-w {tmp_path / 'root'}" in one.mend


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can write everywhere")
def test_a_read_only_cache_is_a_warning(found: Any, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir(mode=0o500)
    assert found("cache").state == "warn"
