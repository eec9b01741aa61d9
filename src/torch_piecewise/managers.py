"""The managers of one compiled callable: one for each grad mode, with the parts that the settings choose."""

from __future__ import annotations

import torch

from torch_piecewise.artifact_store import ArtifactStore
from torch_piecewise.compilers import CompileOptions, Compiler, make_compiler
from torch_piecewise.config import Config
from torch_piecewise.events import Bus
from torch_piecewise.manager import CompilerManager
from torch_piecewise.pool import CompilePool, default_workers
from torch_piecewise.progress import Progress
from torch_piecewise.store import Namespace, OpenStore


class Managers:
    """Makes and remembers managers.

    Args:
        config: chooses the compiler, its options and the pool.
        bus: gets the managers' events.
        store: where artifacts are kept; None to keep nothing.
    """

    def __init__(self, config: Config, bus: Bus, store: OpenStore | None = None) -> None:
        self._config = config
        self._bus = bus
        # Artifacts do not depend on tag or rank: those who make the same piece share it.
        self._store = store.in_namespace(Namespace("artifacts")) if store is not None else None
        self._made: dict[bool, CompilerManager] = {}
        self.compiler = make_compiler(config.backend)

    def of(self, *, grad_enabled: bool) -> CompilerManager:
        """The manager for calls that record gradients, or for calls that do not."""
        if grad_enabled not in self._made:
            self._made[grad_enabled] = self._make(grad_enabled)
        return self._made[grad_enabled]

    def _make(self, grad_enabled: bool) -> CompilerManager:
        options = CompileOptions(
            inductor_config=dict(self._config.inductor_compile_config),
            grad_enabled=grad_enabled,
            threads=torch.get_num_threads(),
        )
        compiler = self._compiler_for(grad_enabled)
        kept = ArtifactStore.of(self._store, compiler, options) if self._store is not None else None
        return CompilerManager(
            compiler,
            options,
            CompilePool(default_workers(self._config.compile_threads), Progress()),
            self._bus,
            self._config.on_piece_error,
            kept,
        )

    def _compiler_for(self, grad_enabled: bool) -> Compiler:
        if grad_enabled and self.compiler.name == "inductor":
            # Standalone artifacts are made for inference; gradients need the in-memory compiler.
            return make_compiler("inductor_memory")
        return self.compiler
