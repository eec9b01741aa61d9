"""The managers of one compiled callable, with the parts that the settings choose."""

from __future__ import annotations

from torch_piecewise.background import Background
from torch_piecewise.compilers import Compiler, make_compiler
from torch_piecewise.compilers.base import Ambient
from torch_piecewise.config import Config
from torch_piecewise.events import Bus
from torch_piecewise.manager import CompilerManager
from torch_piecewise.manager.options import options_of
from torch_piecewise.manager.store import store_for as store_for
from torch_piecewise.store import OpenStore
from torch_piecewise.supply import Tiers


class Managers:
    """Makes and remembers managers, one for each way torch is set when a call comes.

    Args:
        config: chooses the compiler, its options and the pool.
        bus: gets the managers' events.
        store: where artifacts are kept; None to keep nothing.
        background: where work goes that calls do not wait for; None: they wait for all of it.
    """

    def __init__(
        self, config: Config, bus: Bus, store: OpenStore | None, background: Background | None = None
    ) -> None:
        self._config = config
        self._bus = bus
        self._store = store
        self._background = background
        self._made: dict[Ambient, Tiers] = {}
        self.compiler = make_compiler(config.backend)
        self._better = make_compiler(config.upgrade_to) if config.upgrade_to is not None else None
        # What contradicts each other is told before anything is traced.
        for compiler in filter(None, (self.compiler, self._better)):
            options_of(config, compiler, Ambient.now())

    def of(self, ambient: Ambient) -> Tiers:
        """Who makes pieces ready for calls under these settings of torch."""
        if ambient not in self._made:
            self._made[ambient] = self._tiers(ambient)
        return self._made[ambient]

    def _tiers(self, ambient: Ambient) -> Tiers:
        lazily = self._config.on_miss == "background" and self._background is not None
        first = self._make(self._compiler_for(ambient), ambient, later=lazily)
        better = None
        # The in-memory compiler stands in where gradients are recorded: nothing replaces it.
        if self._better is not None and first.compiler is self.compiler and self._background is not None:
            better = self._make(self._better, ambient, later=True)
        return Tiers(first, better, self._background, lazily)

    def _make(self, compiler: Compiler, ambient: Ambient, *, later: bool) -> CompilerManager:
        manager = CompilerManager(
            self._config,
            self._bus,
            compiler=compiler,
            ambient=ambient,
            background=self._background if later else None,
        )
        if self._store is not None:
            manager.keep_in(self._store)
        return manager

    def _compiler_for(self, ambient: Ambient) -> Compiler:
        if ambient.grad_enabled and self.compiler.name in ("inductor", "aot_inductor"):
            # Their artifacts are made for inference; gradients need the in-memory compiler.
            return make_compiler("inductor_memory")
        return self.compiler
