"""Settings that are checked already but whose machinery is missing: using one is an error, not a no-op."""

from __future__ import annotations

from typing import Any

from torch_piecewise.config import Config
from torch_piecewise.errors import ConfigError

_VALUES: dict[str, tuple[Any, ...]] = {}
"""Field -> values of it that nothing serves yet."""

_FIELDS = ("use_inductor_graph_partition",)
"""Fields that only their default leaves without effect."""


def refuse_unbuilt(config: Config) -> None:
    """Refuse a setting that would have no effect.

    Raises:
        ConfigError: names the field and what works instead.
    """
    defaults = Config()
    for name, values in _VALUES.items():
        if getattr(config, name) in values:
            raise _refusal(name, getattr(config, name), getattr(defaults, name))
    for name in _FIELDS:
        if getattr(config, name) != getattr(defaults, name):
            raise _refusal(name, getattr(config, name), getattr(defaults, name))


def _refusal(name: str, value: Any, default: Any) -> ConfigError:
    return ConfigError(
        f"{name}={value!r} is a setting whose machinery is not part of this version yet",
        expected=f"{name}={default!r}",
        got=repr(value),
        hint="leave it out; the changelog says when it is served",
    )
