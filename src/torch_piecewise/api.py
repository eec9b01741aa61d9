"""The doors: ``compile`` and ``program_of``. They decide nothing else."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from torch.jit import ScriptFunction, ScriptModule
from torch.nn import Module

from torch_piecewise.compiled import CompiledCall
from torch_piecewise.compiled_function import Request, compiled_function, handle_of
from torch_piecewise.config import Config
from torch_piecewise.config.advice import advice
from torch_piecewise.errors import ConfigError
from torch_piecewise.ignoring import Decision, decide, decided, is_ignored
from torch_piecewise.torch_private import modules
from torch_piecewise.whole_model import WHOLE_MODES

logger = logging.getLogger("torch_piecewise")


def compile(
    model_or_fn: Any = None,
    *,
    config: Config | None = None,
    tag: str | None = None,
    enable_if: Callable[[Any], Any] | None = None,
    **fields: Any,
) -> Any:
    """Compile a model or function in pieces; nothing happens before its first call.

    ::

        tp.compile(model, dynamic_arg_dims={"input_ids": 1})   # in place, returns model

        @tp.compile(dynamic_arg_dims={"x": 0})
        def step(x): ...

    A compiled part of a compiled whole is traced with the whole, under the whole's settings; called by
    itself it runs as its own program. Of decorated classes that inherit from each other, the one nearest to
    an object decides for it; ``tp.ignore`` takes a class out.

    Args:
        model_or_fn: a module (compiled in place, as ``nn.Module.compile()`` does), a module class (each
            instance is compiled when the class's ``__init__`` is through), a function, or a method in a class
            body. None: returns a decorator.
        config: settings; ``fields`` override it. Settings given in neither come from the environment.
        tag: names this part of a model in the store and in logs. None: that of ``tp.set_model_tag``.
        enable_if: whether to compile at all: called with the module, or for a method with its object, or with
            the function; for a module when it is handed over or made, else at the first call. None: always.

    Returns:
        The same module or class; for a function, one that replaces it.

    Raises:
        ConfigError: a field is unknown or malformed, or the object cannot be compiled.
    """
    if enable_if is not None and not callable(enable_if):
        raise ConfigError(
            "enable_if is not a predicate",
            expected="a function of the module, object or function, such as lambda module: module.width > 64",
            got=f"{enable_if!r} ({type(enable_if).__name__})",
        )
    settings = Config.given(config, fields, to="tp.compile")
    for sentence in advice(settings):
        logger.warning("%s", sentence)
    request = Request(settings, tag, enable_if)
    if model_or_fn is None:
        return functools.partial(_compile, request=request)
    return _compile(model_or_fn, request=request)


def _compile(target: Any, *, request: Request) -> Any:
    if isinstance(target, ScriptModule | ScriptFunction):
        raise ConfigError(
            "TorchScript cannot be compiled",
            expected="the model or function as it was before torch.jit.script or torch.jit.trace",
            got=type(target).__name__,
            hint="compile that one; TorchScript runs outside Python, where nothing can be traced",
        )
    if isinstance(target, type) and issubclass(target, Module):
        return _compile_class(target, request)
    if isinstance(target, Module):
        if is_ignored(type(target)):
            raise ConfigError(
                f"{type(target).__qualname__} is marked with tp.ignore and cannot be compiled",
                expected="a module whose class is compiled",
                hint="remove the mark, or compile the model around it",
            )
        return _compile_module(target, request)
    if inspect.ismethod(target):
        if not request.wants(target.__self__):
            return target
        return CompiledCall(target, target.__self__, request.settings, target, tag=request.tag)
    if inspect.isfunction(target):
        return compiled_function(target, request)
    raise ConfigError(
        "This object cannot be compiled",
        expected="an nn.Module, an nn.Module class, a function or a method",
        got=f"{type(target).__name__}: {target!r}"[:200],
        hint="wrap it in a function",
    )


def _compile_module(module: Module, request: Request) -> Module:
    if not request.wants(module):
        modules.give_back(module)
        return module
    whole = request.settings.mode in WHOLE_MODES
    traced = modules.uncompiled_call(module) if whole else modules.traceable_call(module)
    call = CompiledCall(
        traced,
        module,
        request.settings,
        traced,
        on_restore=functools.partial(modules.give_back, module),
        declared=module.forward,
        tag=request.tag,
    )
    modules.set_compiled_call(module, call)
    return module


def _compile_class(cls: type[Module], request: Request) -> type[Module]:
    original = cls.__init__

    @functools.wraps(original)
    def compiled_init(self: Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if decided(type(self))[0] is cls:  # else a class nearer to the object decides
            _compile_module(self, request)

    cls.__init__ = compiled_init  # type: ignore[method-assign]  # what decorating this class asks for
    decide(cls, Decision.COMPILED)
    return cls


def program_of(model: Any) -> CompiledCall:
    """The handle of a compiled model: ``warmup``, ``stats``, ``restore``.

    Args:
        model: what ``compile`` returned, or what ``torch.compile`` made of that.

    Raises:
        ConfigError: it is not compiled by this library, or through ``torch.compile(backend="piecewise")``,
            which gives each graph a program of its own and no handle.
    """
    found = _handle(model)
    inner = None if found is not None else modules.inside_torch_compile(model)
    found = found if inner is None else _handle(inner)
    if found is not None:
        return found
    if inner is not None:
        raise ConfigError(
            "What torch.compile made has no handle",
            expected="a model or function that tp.compile returned",
            got=f"torch.compile of {_label(inner)}",
            hint="call tp.compile(model, **options) in place of torch.compile(model, backend='piecewise', "
            "options=options); or keep the backend of one graph: backend = tp.PiecewiseCompileBackend(...), "
            "torch.compile(model, backend=backend, fullgraph=True), then backend.program and backend.bus",
        )
    raise ConfigError(
        "This model is not compiled",
        expected="a model or function that tp.compile returned",
        got=_label(model),
        hint="call tp.compile(model, ...) first",
    )


def _handle(model: Any) -> CompiledCall | None:
    call = modules.compiled_call(model) if isinstance(model, Module) else model
    # What an integration puts around a compiled call names it.
    call = getattr(call, "compiled_call", call)
    if not isinstance(call, CompiledCall):
        call = handle_of(model.forward if isinstance(model, Module) else model)
    return call if isinstance(call, CompiledCall) else None


def _label(value: Any) -> str:
    return str(getattr(value, "__qualname__", None) or type(value).__name__)
