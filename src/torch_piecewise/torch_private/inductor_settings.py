"""The names of Inductor's settings."""

from __future__ import annotations

import torch._dynamo.backends.registry  # first: torch.compile begins there, on other threads too
import torch._inductor.config


def inductor_settings() -> frozenset[str]:
    """Every name that ``torch._inductor.config.patch`` takes (2.11, 2.13)."""
    return frozenset(torch._inductor.config.get_config_copy())
