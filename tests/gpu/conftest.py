"""What GPU tests need, asked once. They want torch, pytest and the package on the path, nothing else.

Run them with ``python -m pytest tests/gpu`` from a checkout. The settings are those of ``pytest.ini`` beside
this file, and ``tests/conftest.py`` is not read.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers each time, and nothing in the user's caches."""
    torch.manual_seed(0)
    monkeypatch.setenv("TORCH_PIECEWISE_CACHE_DIR", str(tmp_path / "store"))


def missing_capability() -> str:
    """Why GPU tests cannot run here; empty where they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        x = torch.ones(4, device="cuda")
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            x.add_(1)
            graph.capture_end()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        return f"CUDA graphs do not work: {error}"
    return "" if x.sum().item() == 8 else "a replayed CUDA graph gave wrong results"


def _make_library_handles() -> None:
    """Libraries make their handles at the first call of a thread, and cannot while it captures."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(16, 16, device="cuda", dtype=dtype)
        torch.nn.functional.linear(x, x, x[0]) @ x
    torch.cuda.synchronize()


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The device, or a skip that says why there is none."""
    reason = missing_capability()
    if reason:
        pytest.skip(reason)
    _make_library_handles()
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def inductor(gpu: torch.device) -> None:
    """A skip where Inductor cannot compile for the device (no triton, no C compiler)."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=gpu))
    except Exception as error:  # noqa: BLE001 - whatever keeps CUDA from working here
        pytest.skip(f"Inductor does not work here: {type(error).__name__}")
