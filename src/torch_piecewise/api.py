"""The doors: ``compile`` and ``program_of``. They decide nothing else."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

from torch.jit import ScriptFunction, ScriptModule
from torch.nn import Module

from torch_piecewise.compiled import CompiledCall
from torch_piecewise.config import Config
from torch_piecewise.errors import ConfigError
from torch_piecewise.torch_private import modules
from torch_piecewise.unbuilt import refuse_unbuilt
from torch_piecewise.whole_model import WHOLE_MODES, dims_of_mode


def compile(
    model_or_fn: Any = None, *, config: Config | None = None, tag: str | None = None, **fields: Any
) -> Any:
    """Compile a model or function in pieces; nothing happens before its first call.

    ::

        tp.compile(model, dynamic_arg_dims={"input_ids": 1})   # in place, returns model

        @tp.compile(dynamic_arg_dims={"x": 0})
        def step(x): ...

    Args:
        model_or_fn: a module (compiled in place, as ``nn.Module.compile()`` does), a module class (each
            instance is compiled), a function, or a method in a class body. None: returns a decorator.
        config: settings; ``fields`` override it. Settings given in neither come from the environment.
        tag: names this part of a model in the store and in logs.

    Returns:
        The same module or class; for a function, a callable that replaces it.

    Raises:
        ConfigError: a field is unknown or malformed, or the object cannot be compiled.
    """
    settings = _settings(config, fields)
    if model_or_fn is None:
        return functools.partial(_compile, settings=settings, tag=tag)
    return _compile(model_or_fn, settings=settings, tag=tag)


def _settings(config: Config | None, fields: dict[str, Any]) -> Config:
    base = config if config is not None else Config()
    settings = (base.replace(**fields) if fields else base).with_env()
    refuse_unbuilt(settings)
    return settings


def _compile(target: Any, *, settings: Config, tag: str | None) -> Any:
    if isinstance(target, ScriptModule | ScriptFunction):
        raise ConfigError(
            "TorchScript cannot be compiled",
            expected="the model or function as it was before torch.jit.script or torch.jit.trace",
            got=type(target).__name__,
            hint="compile that one; TorchScript runs outside Python, where nothing can be traced",
        )
    if isinstance(target, type) and issubclass(target, Module):
        return _compile_class(target, settings, tag)
    if isinstance(target, Module):
        return _compile_module(target, settings, tag)
    if inspect.ismethod(target):
        return CompiledCall(target, target.__self__, settings, target, tag=tag)
    if inspect.isfunction(target):
        return CompiledFunction(target, settings, tag)
    raise ConfigError(
        "This object cannot be compiled",
        expected="an nn.Module, an nn.Module class, a function or a method",
        got=f"{type(target).__name__}: {target!r}"[:200],
        hint="wrap it in a function",
    )


def _compile_module(module: Module, settings: Config, tag: str | None) -> Module:
    modules.set_compiled_call(module, None)
    whole = settings.mode in WHOLE_MODES
    traced = modules.uncompiled_call(module) if whole else modules.traceable_call(module)
    call = CompiledCall(
        traced,
        module,
        settings,
        traced,
        on_restore=functools.partial(modules.set_compiled_call, module, None),
        declared=module.forward,
        tag=tag,
    )
    modules.set_compiled_call(module, call)
    return module


def _compile_class(cls: type[Module], settings: Config, tag: str | None) -> type[Module]:
    original = cls.__init__

    @functools.wraps(original)
    def compiled_init(self: Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _compile_module(self, settings, tag)

    cls.__init__ = compiled_init  # type: ignore[method-assign]  # what decorating this class asks for
    return cls


class CompiledFunction:
    """A compiled function; in a class body, a method that is compiled for each instance."""

    def __init__(self, function: Callable[..., Any], settings: Config, tag: str | None) -> None:
        functools.update_wrapper(self, function)
        self.settings = settings
        self.tag = tag
        self.function = function
        self._own: CompiledCall | None = None
        self._bound: weakref.WeakKeyDictionary[Any, CompiledCall] = weakref.WeakKeyDictionary()
        if "self" not in inspect.signature(function).parameters:
            dims_of_mode(function, settings)  # a mistake in the settings is told here, not at the first call

    @property
    def call(self) -> CompiledCall:
        """The handle of the function itself (not of a method of an instance)."""
        if self._own is None:
            self._own = CompiledCall(self.function, None, self.settings, self.function, tag=self.tag)
        return self._own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        call = self._bound.get(instance)
        if call is None:
            bound = self.function.__get__(instance, owner)
            call = self._bound.setdefault(
                instance, CompiledCall(bound, instance, self.settings, bound, tag=self.tag)
            )
        return call


def program_of(model: Any) -> CompiledCall:
    """The handle of a compiled model: ``warmup``, ``stats``, ``restore``.

    Args:
        model: what ``compile`` returned.

    Raises:
        ConfigError: it is not compiled by this library.
    """
    call = modules.compiled_call(model) if isinstance(model, Module) else model
    if isinstance(call, CompiledFunction):
        call = call.call
    if not isinstance(call, CompiledCall):
        raise ConfigError(
            "This model is not compiled",
            expected="a model or function that tp.compile returned",
            got=f"{type(model).__name__}",
            hint="call tp.compile(model, ...) first",
        )
    return call
