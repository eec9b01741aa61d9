"""What a manager is made of, chosen by settings."""

from __future__ import annotations

from collections.abc import Sequence

from torch_piecewise.compilers import CompileOptions, Compiler
from torch_piecewise.compilers.base import Ambient
from torch_piecewise.config import Config
from torch_piecewise.errors import ConfigError
from torch_piecewise.events import Bus, Observer
from torch_piecewise.inductor_partition import captures_partitions, partition_settings
from torch_piecewise.passes.plan import PassPlan
from torch_piecewise.torch_private.passes import POST_GRAD_HOOK


def options_of(config: Config, compiler: Compiler, ambient: Ambient) -> CompileOptions:
    """What ``compiler`` is told under ``config``.

    Raises:
        ConfigError: passes are asked for and the compiler runs none, or one cannot be resolved.
        PassError: one of the passes is a pass manager.
    """
    passes = PassPlan.for_compile(config)
    if passes is not None and not getattr(compiler, "runs_passes", False):
        raise ConfigError(
            f"inductor_passes and pass_config have no effect with the compiler {compiler.name!r}",
            expected="backend='inductor', or a compiler whose attribute runs_passes says that it runs them",
            got=f"backend {compiler.name!r}",
            hint="leave the passes out, or choose a compiler that runs them",
        )
    settings = {**partition_settings(config), **config.inductor_settings()}
    settings.pop(POST_GRAD_HOOK, None)  # the plan holds what the user put there
    return CompileOptions(settings, passes, ambient, captures_partitions(config))


def bus_with(own: Sequence[Observer], bus: Bus | None) -> Bus:
    """A bus that tells ``own`` and, where there is one, ``bus``."""
    return Bus(*own) if bus is None else Bus(*own, bus.emit, tag=bus.tag)
