"""A publisher that is killed at any moment leaves the old entry, the new one, or none; never a wrong one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "scripts" / "crash_publisher.py"
STEPS = {
    "temp-created",
    "temp-written",
    "temp-flushed",
    "renamed",
    "folder-flushed",
    "blob-published",
    "companion-published",
    "manifest-published",
}


def told_by(root: Path, kills: int, seed: int):
    command = [sys.executable, str(SCRIPT), str(root), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(told) -> None:
    assert told["wrong"] == []
    assert told["leftovers"] == []
    assert told["after"] == [10**6] * 2


def test_killed_at_every_step_of_publishing_the_next_start_is_right(root):
    told = told_by(root, 0, 0)
    assert set(told["steps"]) == STEPS
    assert told["kills"] >= 35
    check(told)


def test_killed_at_random_times_the_next_start_is_right(root):
    check(told_by(root, 20, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_killed_many_times_the_next_start_is_right(root, seed):
    check(told_by(root, 200, seed))
