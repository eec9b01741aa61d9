"""What GPU tests need, asked once. They want torch, pytest and the package on the path, nothing else.

Run them with ``PYTHONPATH=src python -m pytest -m gpu tests/gpu``.
"""

from __future__ import annotations

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU that can capture CUDA graphs")


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


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The device, or a skip that says why there is none."""
    reason = missing_capability()
    if reason:
        pytest.skip(reason)
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def inductor(gpu: torch.device) -> None:
    """A skip where Inductor cannot compile for the device (no triton, no C compiler)."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=gpu))
    except Exception as error:  # noqa: BLE001 - whatever keeps CUDA from working here
        pytest.skip(f"Inductor does not work here: {type(error).__name__}")
