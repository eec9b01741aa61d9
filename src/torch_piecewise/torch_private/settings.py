"""Patching torch's configuration modules for the length of a block (2.11, 2.13).

``config.patch`` is how torch itself scopes settings; the modules install it at run time, so that type
checkers do not see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any


def patched(config: Any, settings: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Set ``settings`` in a torch configuration module inside the block."""
    context: AbstractContextManager[None] = config.patch(dict(settings))
    return context
