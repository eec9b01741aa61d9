"""The managers of one compiled callable, with the parts that the settings choose."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

from torch_piecewise.artifact_store import ArtifactStore
from torch_piecewise.background import Background
from torch_piecewise.compilers import CompileOptions, Compiler, make_compiler
from torch_piecewise.compilers.base import Ambient
from torch_piecewise.config import Config
from torch_piecewise.errors import ConfigError, FingerprintError
from torch_piecewise.events import Bus
from torch_piecewise.manager import CompilerManager
from torch_piecewise.passes.plan import PassPlan
from torch_piecewise.pool import CompilePool, default_workers
from torch_piecewise.progress import Progress
from torch_piecewise.store import Namespace, OpenStore, cache_root, open_store
from torch_piecewise.store.opening import LIMIT_BYTES
from torch_piecewise.supply import Tiers
from torch_piecewise.torch_private.passes import POST_GRAD_HOOK

logger = logging.getLogger("torch_piecewise")


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
        background: where work goes that calls do not wait for; None: they wait for all of it.
    """

    def __init__(
        self, config: Config, bus: Bus, store: OpenStore | None, background: Background | None = None
    ) -> None:
        self._config = config
        self._bus = bus
        # Artifacts do not depend on tag or rank: those who make the same piece share it.
        self._store = store.in_namespace(Namespace("artifacts")) if store is not None else None
        self._background = background
        self._made: dict[Ambient, Tiers] = {}
        self.compiler = make_compiler(config.backend)
        self._better = make_compiler(config.upgrade_to) if config.upgrade_to is not None else None
        self._passes = PassPlan.for_compile(config)
        if self._passes is not None:
            _check_runs_passes(self.compiler)

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
        settings = dict(self._config.inductor_compile_config)
        settings.pop(POST_GRAD_HOOK, None)  # the plan holds what the user put there
        options = CompileOptions(settings, self._passes, ambient)
        stopped = (lambda: background.is_stopped) if later and (background := self._background) else None
        return CompilerManager(
            compiler,
            options,
            CompilePool(
                default_workers(self._config.compile_threads),
                Progress() if stopped is None else None,
                stopped=stopped,
            ),
            self._bus,
            self._config.on_piece_error,
            self._kept(compiler, options),
        )

    def _kept(self, compiler: Compiler, options: CompileOptions) -> ArtifactStore | None:
        if self._store is None:
            return None
        try:
            return ArtifactStore.of(self._store, compiler, options)
        except FingerprintError as error:
            logger.warning("nothing compiled under these settings is kept: %s", error)
            return None

    def _compiler_for(self, ambient: Ambient) -> Compiler:
        if ambient.grad_enabled and self.compiler.name in ("inductor", "aot_inductor"):
            # Their artifacts are made for inference; gradients need the in-memory compiler.
            return make_compiler("inductor_memory")
        return self.compiler


def _check_runs_passes(compiler: Compiler) -> None:
    if not getattr(compiler, "runs_passes", False):
        raise ConfigError(
            f"inductor_passes and pass_config have no effect with the compiler {compiler.name!r}",
            expected="backend='inductor', or a compiler whose attribute runs_passes says that it runs them",
            got=f"backend {compiler.name!r}",
            hint="leave the passes out, or choose a compiler that runs them",
        )
