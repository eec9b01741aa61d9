"""The managers of one compiled callable, with the parts that the settings choose."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from torch_piecewise.artifact_store import ArtifactStore
from torch_piecewise.compilers import CompileOptions, Compiler, make_compiler
from torch_piecewise.compilers.base import Ambient
from torch_piecewise.config import Config
from torch_piecewise.events import Bus
from torch_piecewise.manager import CompilerManager
from torch_piecewise.pool import CompilePool, default_workers
from torch_piecewise.progress import Progress
from torch_piecewise.store import Namespace, OpenStore, cache_root, open_store
from torch_piecewise.store.opening import LIMIT_BYTES


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


class Managers:
    """Makes and remembers managers, one for each way torch is set when a call comes.

    Args:
        config: chooses the compiler, its options and the pool.
        bus: gets the managers' events.
        store: where artifacts are kept; None to keep nothing.
    """

    def __init__(self, config: Config, bus: Bus, store: OpenStore | None) -> None:
        self._config = config
        self._bus = bus
        # Artifacts do not depend on tag or rank: those who make the same piece share it.
        self._store = store.in_namespace(Namespace("artifacts")) if store is not None else None
        self._made: dict[Ambient, CompilerManager] = {}
        self.compiler = make_compiler(config.backend)

    def of(self, ambient: Ambient) -> CompilerManager:
        """The manager for calls under these settings of torch."""
        if ambient not in self._made:
            self._made[ambient] = self._make(ambient)
        return self._made[ambient]

    def _make(self, ambient: Ambient) -> CompilerManager:
        options = CompileOptions(dict(self._config.inductor_compile_config), ambient)
        compiler = self._compiler_for(ambient)
        kept = ArtifactStore.of(self._store, compiler, options) if self._store is not None else None
        return CompilerManager(
            compiler,
            options,
            CompilePool(default_workers(self._config.compile_threads), Progress()),
            self._bus,
            self._config.on_piece_error,
            kept,
        )

    def _compiler_for(self, ambient: Ambient) -> Compiler:
        if ambient.grad_enabled and self.compiler.name in ("inductor", "aot_inductor"):
            # Their artifacts are made for inference; gradients need the in-memory compiler.
            return make_compiler("inductor_memory")
        return self.compiler
