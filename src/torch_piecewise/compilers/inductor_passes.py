"""Graph passes inside an Inductor compile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch_piecewise.compilers.base import CompileOptions
from torch_piecewise.compilers.pass_records import as_meta
from torch_piecewise.errors import ConfigError, FingerprintError, did_you_mean
from torch_piecewise.passes.manager import PassManager
from torch_piecewise.passes.plan import PassPlan
from torch_piecewise.torch_private.passes import POST_GRAD_HOOK


class _SharedManager(PassManager):
    """The manager of one compile. AOTInductor copies its settings, and records in a copy would be lost."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedManager:
        return self


@dataclass(frozen=True)
class Patches:
    """Inductor's settings for one compile, with the passes in their place.

    Attributes:
        settings: patches for Inductor's configuration.
        manager: what runs the passes; None where none were asked for.
        keepable: whether what is compiled may be kept: False where a pass has no stable identity.
    """

    settings: Mapping[str, Any]
    manager: PassManager | None = None
    keepable: bool = True

    @classmethod
    def of(cls, options: CompileOptions) -> Patches:
        """What ``options`` ask for.

        Raises:
            ConfigError: a setting is none of Inductor's.
        """
        _refuse_unknown(options.inductor_config)
        if options.passes is None:
            return cls(options.inductor_config)
        manager = _SharedManager.of(options.passes)
        settings = {**options.inductor_config, POST_GRAD_HOOK: manager}
        if _is_keepable(options.passes):
            return cls(settings, manager)
        # torch would ask for the passes' identity to put it into the key of its own cache.
        return cls({**settings, "fx_graph_cache": False}, manager, keepable=False)

    def meta(self) -> dict[str, Any]:
        """What the passes did, as an artifact's ``meta`` has it; nothing where torch had the graph kept."""
        if self.manager is None:
            return {}
        return as_meta(self.manager.records)


def _refuse_unknown(settings: Mapping[str, Any]) -> None:
    # Imported for its cost: settings are checked where Inductor is about to be loaded anyway.
    from torch_piecewise.torch_private.inductor_settings import inductor_settings

    known = inductor_settings()
    unknown = [name for name in settings if name not in known]
    if unknown:
        hints = [hint for name in unknown if (hint := did_you_mean(name, known))]
        raise ConfigError(
            "inductor_compile_config names what Inductor has no setting for",
            expected="names of torch._inductor.config",
            got=", ".join(unknown),
            hint="; ".join(hints) or "leave it out",
        )


def _is_keepable(passes: PassPlan) -> bool:
    try:
        passes.fingerprint()
    except FingerprintError:
        return False
    return True
