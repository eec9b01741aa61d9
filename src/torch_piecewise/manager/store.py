"""The store that a manager keeps artifacts in: which root, and which entries of it."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

from torch_piecewise.artifact_store import ArtifactStore
from torch_piecewise.compilers.base import CompileOptions, Compiler
from torch_piecewise.config import Config
from torch_piecewise.errors import FingerprintError
from torch_piecewise.store import Namespace, OpenStore, cache_root, open_store
from torch_piecewise.store.opening import LIMIT_BYTES

logger = logging.getLogger("torch_piecewise")

SHARED = "artifacts"
"""The namespace of artifacts. They do not depend on tag or rank: those who make the same piece share it."""


@functools.cache
def opened(root: Path, limit_bytes: int) -> OpenStore:
    """The store at ``root``, one for the process: its locks are the process's."""
    return open_store(root, limit_bytes=limit_bytes)


def store_for(config: Config) -> OpenStore | None:
    """The store that ``config`` and the environment name; None where nothing is to be kept.

    Raises:
        UntrustedError: others can write to the root; names the command that mends it.
    """
    if config.disable_cache:
        return None
    root = Path(config.cache_dir) if config.cache_dir else cache_root(os.environ)
    return opened(root.absolute(), config.cache_size_limit or LIMIT_BYTES)


def artifacts_in(
    store: OpenStore, compiler: Compiler, options: CompileOptions, prefix: str = ""
) -> ArtifactStore | None:
    """The artifacts of ``compiler`` under ``options`` in ``store``; None where they cannot be named.

    Args:
        prefix: a part of the root of one's own; empty for the one that everybody shares.
    """
    try:
        return ArtifactStore.of(store.in_namespace(Namespace(prefix or SHARED)), compiler, options)
    except FingerprintError as error:
        logger.warning("nothing compiled under these settings is kept: %s", error)
        return None
