"""Compilers, and how a configured name becomes one."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from torch_piecewise.compilers.base import CompileOptions, Compiler
from torch_piecewise.compilers.eager import EagerCompiler
from torch_piecewise.config import Config
from torch_piecewise.errors import CompilerError, ConfigError, did_you_mean

__all__ = ["CompileOptions", "Compiler", "fingerprint_of", "make_compiler"]

_BUILT_IN = {
    "aot_inductor": "torch_piecewise.compilers.aot_inductor.AOTInductorCompiler",
    "eager": "torch_piecewise.compilers.eager.EagerCompiler",
    "inductor": "torch_piecewise.compilers.inductor.InductorCompiler",
    "inductor_memory": "torch_piecewise.compilers.inductor_memory.InductorMemoryCompiler",
}


def make_compiler(backend: str | Config | Compiler | type[Any]) -> Compiler:
    """The compiler that ``backend`` names.

    Args:
        backend: ``"inductor"``, ``"inductor_memory"``, ``"aot_inductor"``, ``"eager"``, the dotted
            name of a class that meets the :class:`Compiler` protocol, such a class, or an instance of one;
            or the settings whose ``backend`` is one of these.

    Raises:
        ConfigError: the name resolves to nothing, or to something that is no compiler.
    """
    if isinstance(backend, Config):
        backend = backend.backend
    if backend == "eager":
        return EagerCompiler()
    made: Any = _resolve(backend) if isinstance(backend, str) else backend
    if isinstance(made, type):
        made = _instance(made)
    missing = [verb for verb in ("name", "fingerprint", "compile", "load") if not hasattr(made, verb)]
    if missing:
        raise ConfigError(
            f"backend {backend!r} is not a compiler",
            expected="an object with name, fingerprint(), compile(piece, range, options), load(artifact)",
            got=f"{type(made).__name__} without {', '.join(missing)}",
            hint="see 'Writing a compiler' in docs/compilers.md",
        )
    compiler: Compiler = made
    return compiler


def _instance(made: type[Any]) -> Any:
    try:
        return made()
    except TypeError as error:
        raise ConfigError(
            f"The compiler class {made.__qualname__} cannot be made without arguments",
            expected="a class whose __init__ needs none, or an instance of it",
            got=f"{type(error).__name__}: {error}",
            hint=f"give its arguments default values, or give backend={made.__name__}(...)",
        ) from error


def fingerprint_of(compiler: Compiler) -> str:
    """What ``compiler.fingerprint()`` says.

    Raises:
        CompilerError: it says something else than text.
    """
    said: object = compiler.fingerprint()
    if not isinstance(said, str):
        raise CompilerError(
            f"Compiler {compiler.name!r} has a fingerprint that is no text",
            expected="fingerprint() returns a str that changes whenever the same piece could compile to "
            "other code",
            got=f"{said!r} ({type(said).__name__})",
            hint="return a text with the versions and flags that the code depends on, such as 'mine 1.2'",
        )
    return said


def _resolve(name: str) -> Any:
    dotted = _BUILT_IN.get(name, name)
    module_name, _, attribute = dotted.rpartition(".")
    known: Iterable[str] = _BUILT_IN
    try:
        module = importlib.import_module(module_name)
        known = [public for public in dir(module) if not public.startswith("_")]
        return getattr(module, attribute)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: no dot
        raise ConfigError(
            f"backend {name!r} does not resolve to a compiler",
            expected=f"one of {', '.join(sorted(_BUILT_IN))}, or the dotted name of a class",
            got=str(error) if module_name else f"{name!r}, which has no dot",
            hint=did_you_mean(attribute, known)
            or "check the spelling, and that the module can be imported here",
        ) from error
