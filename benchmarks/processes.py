"""Run a program in a process of its own and take its figures: one place for all benchmarks of starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence


def figures(program: str, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
    """What ``program`` printed last, a JSON object.

    Args:
        program: Python source; reads ``arguments`` from ``sys.argv[1:]``.
        environment: all of it.

    Raises:
        SystemExit: it failed; shows the end of what it wrote.
    """
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments[:2])} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
