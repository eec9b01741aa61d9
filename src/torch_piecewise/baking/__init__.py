"""Compile ahead of time into one file, and start from it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.nn import Module

from torch_piecewise.baking.program import ProgramWriter
from torch_piecewise.compilers.base import Ambient
from torch_piecewise.config import Config
from torch_piecewise.entry import MISS, Entry
from torch_piecewise.errors import BundleError, CaptureError, ConfigError
from torch_piecewise.events import Bus
from torch_piecewise.inspection import tell
from torch_piecewise.managers import Managers, store_for
from torch_piecewise.runtime.file import check_place, write_bundle
from torch_piecewise.store.signing import load_key_file
from torch_piecewise.subject import Subject
from torch_piecewise.tags import current_tag
from torch_piecewise.torch_private.modules import raised_by_model, traceable_call
from torch_piecewise.tracing import Traced, Tracer
from torch_piecewise.whole_model import dims_of_mode

_ALLOWED = {
    "mode": ("piecewise", "trace_once"),
    "guards": ("inputs", "none"),
    "cudagraph_mode": ("none", "NONE"),
}
"""Of settings that choose what stands around the pieces: what a bundle can be."""


def bake(
    model: Module,
    example_inputs: Sequence[Any] | Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    config: Config | None = None,
    tag: str | None = None,
    **fields: Any,
) -> None:
    """Compile a model for inference into one file that starts with only torch.

    ::

        tp.bake(model, (input_ids,), "model.tpb", dynamic_arg_dims={"input_ids": 1})

    The model is traced for inference with the example inputs; it is not run, and left as it is. The file
    holds code, no weights (except buffers that no file of weights has).

    Args:
        model: as it will be served: on its device, in its dtype, ``eval()`` if so.
        example_inputs: arguments of one call: a tuple or list of positional ones, or a dict of named ones.
        path: where to write; an existing file is replaced, by a whole one or not at all.
        example_kwargs: keyword arguments beside a tuple.
        config: settings; ``fields`` override it. ``backend`` is ``"aot_inductor"`` unless ``"eager"`` is
            given, which writes the pieces as Python. ``on_miss`` means nothing here: all is compiled now.
        tag: names this part of a model in the store and in logs.

    Raises:
        ConfigError: a field or argument is malformed.
        BundleFileError: ``path`` cannot be written to.
        CaptureError: the model cannot be traced.
        BundleError: the model does something that cannot be written down; says what.
        PieceCompileError: a piece failed to compile.
    """
    place = _place(path)
    args, kwargs = _call(model, example_inputs, example_kwargs)
    settings = _settings(config, fields)
    key = load_key_file(Path(settings.signing_key_file)) if settings.signing_key_file else None
    with torch.no_grad():
        traced = _traced(model, args, kwargs, settings.replace(signing_key_file=None), tag)
        # All at once: distinct pieces and ranges are compiled side by side.
        traced.entry.program.prepare()
    manifest, members = ProgramWriter(traced, model).bundle(args, kwargs)
    write_bundle(place, manifest, members, key.sign if key is not None else lambda _document: None)


def _place(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(
            "tp.bake takes a path to write to", expected="str or os.PathLike", got=type(path).__name__
        )
    place = Path(path)
    check_place(place)
    return place


def _call(
    model: Any, example_inputs: Any, example_kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(model, Module):
        raise ConfigError(
            "This object cannot be baked",
            expected="an nn.Module",
            got=type(model).__name__,
            hint="put the function into a module's forward",
        )
    got = type(example_inputs).__name__
    if not isinstance(example_kwargs, Mapping | None):
        got = f"example_kwargs of type {type(example_kwargs).__name__}"
    elif isinstance(example_inputs, Mapping) and example_kwargs is None:
        return (), dict(example_inputs)
    elif isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), dict(example_kwargs or {})
    raise ConfigError(
        "The example inputs of tp.bake are no call",
        expected="a tuple of positional arguments, or a dict of keyword arguments",
        got=got,
        hint="write (x,) for one argument; a tuple and example_kwargs={...} for both kinds",
    )


def _settings(config: Config | None, fields: dict[str, Any]) -> Config:
    if not isinstance(config, Config | None):
        raise ConfigError(
            "config of tp.bake is no Config",
            expected="tp.Config(...) or None",
            got=type(config).__name__,
            hint="give settings as keyword arguments: tp.bake(..., backend='eager')",
        )
    base = config if config is not None else Config()
    if base.backend == Config().backend:
        base = base.replace(backend="aot_inductor")
    # What serving may put off, or demand of the store, is done here.
    settings = (base.replace(**fields) if fields else base).with_env().replace(on_miss="compile")
    if settings.backend not in ("aot_inductor", "eager"):
        raise ConfigError(
            f"tp.bake cannot write down pieces of backend={settings.backend!r}",
            expected="'aot_inductor' or 'eager'",
            got=repr(settings.backend),
            hint="leave backend out",
        )
    for name, allowed in _ALLOWED.items():
        if str(getattr(settings, name)) not in allowed:
            raise ConfigError(
                f"tp.bake does not serve {name}={str(getattr(settings, name))!r}",
                expected=" or ".join(map(repr, allowed)),
                got=repr(str(getattr(settings, name))),
                hint="leave it out; tp.compile serves it",
            )
    return settings


def _traced(
    model: Module, args: tuple[Any, ...], kwargs: dict[str, Any], settings: Config, tag: str | None
) -> Traced:
    """The call, traced here and now: what the store keeps of a trace does not say all that it read."""
    function = traceable_call(model)
    subject = Subject(function, model, function, declared=model.forward)
    if not subject.takes(args, kwargs):
        raise _no_call(subject, args, kwargs)
    bus = Bus(tell, tag=current_tag(tag))
    managers = Managers(settings, bus, store_for(settings))
    # First of all: its preparations take longer than all that comes before they are needed.
    managers.of(Ambient.now()).first.warm_up(subject.devices(args, kwargs))
    dims = dims_of_mode(model.forward, settings)
    tracer = Tracer(subject.function, subject.signature, model, dims, settings, bus, managers)
    try:
        traced = tracer.trace(args, kwargs)
    except (CaptureError, TypeError) as error:
        if raised_by_model(error):
            function(*args, **kwargs)  # refuses in its own words
        raise
    _check_accepted(traced.entry, args, kwargs)
    return traced


def _no_call(subject: Subject, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ConfigError:
    got = "another call"
    try:
        subject.signature.bind(*args, **kwargs)
    except TypeError as error:
        got = str(error)
    return ConfigError(
        f"The example inputs of tp.bake are no call of {subject.label}.forward",
        expected=str(subject.signature),
        got=got,
    )


class _Accepted(Exception):
    """The entry went as far as to run the program."""


def _check_accepted(entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """See that the trace serves the very call it was made from; nothing is run."""

    def reached(*_values: Any) -> NoReturn:
        raise _Accepted

    try:
        missed = entry.call_with(lambda _key: reached, *args, **kwargs) is MISS
    except _Accepted:
        return
    if missed:
        raise BundleError(
            "A fresh trace does not accept the very call it was made from",
            got=str(entry.why_not(*args, **kwargs)),
            hint="please report this with the model; tp.compile runs it",
        )
