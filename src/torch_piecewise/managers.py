"""The managers of one compiled callable, with the parts that the settings choose."""

from __future__ import annotations

from torch_piecewise.compilers import Compiler, make_compiler
from torch_piecewise.compilers.base import Ambient
from torch_piecewise.config import Config
from torch_piecewise.events import Bus
from torch_piecewise.manager import CompilerManager
from torch_piecewise.manager_options import options_of
from torch_piecewise.manager_store import store_for as store_for
from torch_piecewise.store import OpenStore


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
        self._store = store
        self._made: dict[Ambient, CompilerManager] = {}
        self.compiler = make_compiler(config.backend)
        # What contradicts each other is told before anything is traced.
        options_of(config, self.compiler, Ambient.now())

    def of(self, ambient: Ambient) -> CompilerManager:
        """The manager for calls under these settings of torch."""
        if ambient not in self._made:
            self._made[ambient] = self._make(ambient)
        return self._made[ambient]

    def _make(self, ambient: Ambient) -> CompilerManager:
        compiler = self._compiler_for(ambient)
        manager = CompilerManager(self._config, self._bus, compiler=compiler, ambient=ambient)
        if self._store is not None:
            manager.keep_in(self._store)
        return manager

    def _compiler_for(self, ambient: Ambient) -> Compiler:
        if ambient.grad_enabled and self.compiler.name in ("inductor", "aot_inductor"):
            # Their artifacts are made for inference; gradients need the in-memory compiler.
            return make_compiler("inductor_memory")
        return self.compiler
