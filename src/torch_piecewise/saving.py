"""A bundle of a model that runs: baked anew, with the settings it runs under and a call like its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch_piecewise.baking import bake
from torch_piecewise.config import Config
from torch_piecewise.errors import ConfigError, GuardError
from torch_piecewise.example_call import ExampleCall
from torch_piecewise.subject import Subject


def save(
    subject: Subject,
    config: Config,
    tag: str,
    traced: ExampleCall | None,
    path: str | os.PathLike[str],
    example_inputs: Sequence[Any] | Mapping[str, Any] | None,
    fields: Mapping[str, Any],
) -> None:
    """Write the bundle; see :meth:`CompiledCall.save`.

    Args:
        traced: the newest call that was traced or taken from the store; None where none was.
    """
    if not subject.is_module_call:
        raise ConfigError(
            "A bundle holds the call of a module",
            expected="the handle of an nn.Module that tp.compile was given",
            got=f"that of the function {subject.plain.__qualname__}",
            hint="put the function into a module's forward",
        )
    settings = _settings(config, fields)
    kwargs: Mapping[str, Any] | None = None
    if example_inputs is None:
        if traced is None:
            raise GuardError(
                "Nothing has been traced yet",
                expected="one call before save(path), or save(path, example_inputs=(x,))",
                hint="call the model once, or give the arguments of one call",
            )
        example_inputs, kwargs = traced.make()
    bake(subject.owner, example_inputs, path, example_kwargs=kwargs, config=settings, tag=tag)


def _settings(config: Config, fields: Mapping[str, Any]) -> Config:
    """What stands around a running program and means nothing to a bundle is taken back."""
    taken_back: dict[str, Any] = {"upgrade_to": None} if config.upgrade_to is not None else {}
    if config.backend == "inductor_memory":
        taken_back["backend"] = "aot_inductor"
    settings = config.replace(**{**taken_back, "on_miss": "compile", **fields})
    if settings.backend not in ("inductor", "aot_inductor", "eager"):
        raise ConfigError(
            "A bundle cannot hold what this compiler makes",
            expected="'aot_inductor' or 'eager'",
            got=f"backend={settings.backend!r}",
            hint="save(path, backend='aot_inductor') compiles the pieces anew with that one",
        )
    if settings.cudagraph_mode:
        raise ConfigError(
            "A bundle does not replay static graphs",
            expected="cudagraph_mode='none'",
            got=f"cudagraph_mode={str(settings.cudagraph_mode)!r}",
            hint="save(path, cudagraph_mode='none') writes the pieces without them",
        )
    return settings
