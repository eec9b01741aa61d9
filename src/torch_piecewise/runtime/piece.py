"""Start one piece that AOTInductor compiled."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from torch_piecewise.relations import FUNCTIONS
from torch_piecewise.torch_private.aoti import Run, aoti_runner

CODE = "piece.so"
"""The shared object."""

EXTERN = "piece.json"
"""The operators it calls that Inductor did not generate; absent where there are none."""


def start_piece(
    payload: Mapping[str, Any], files: Mapping[str, bytes | Path]
) -> Callable[..., tuple[Any, ...]]:
    """The callable of a compiled piece.

    Args:
        payload: ``source``, Python whose ``make(run)`` returns the piece, and ``device``.
        files: :data:`CODE` and :data:`EXTERN`; empty where the piece needs no machine code. They may be
            deleted once this returns.

    Raises:
        RuntimeError: the shared object cannot be loaded on this machine.
    """
    run = _runner(files, payload["device"]) if files else None
    scope: dict[str, Any] = {**FUNCTIONS, "tensor": torch.tensor}
    exec(compile(payload["source"], "<torch-piecewise piece>", "exec"), scope)
    piece: Callable[..., tuple[Any, ...]] = scope["make"](run)
    return piece


def _runner(files: Mapping[str, bytes | Path], device: str) -> Run:
    """The function in a shared object, its files laid side by side under the names it looks for."""
    with tempfile.TemporaryDirectory(prefix="torch-piecewise-") as folder:
        for name in (CODE, EXTERN):
            content = files.get(name)
            if isinstance(content, Path):
                (Path(folder) / name).symlink_to(content.absolute())
            elif content is not None:
                (Path(folder) / name).write_bytes(content)
        run = aoti_runner(Path(folder) / CODE, device)
    return _in_turn(run) if EXTERN in files else run


def _in_turn(run: Run) -> Run:
    """``run`` for one caller at a time.

    Its operators may need Python's lock, which a second caller, waiting inside for the first, would hold.
    """
    lock = threading.Lock()

    def locked(inputs: Any) -> list[torch.Tensor]:
        with lock:
            return run(inputs)

    return locked
