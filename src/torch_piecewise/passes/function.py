"""Passes made of something else: a plain function, a dotted name, a pass written for Inductor."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from torch_piecewise.errors import ConfigError, FingerprintError, did_you_mean
from torch_piecewise.passes.base import GraphPass
from torch_piecewise.passes.identity import Identity, identity_of

PassLike = GraphPass | type[GraphPass] | Callable[[fx.Graph], int | None] | str
"""A pass, a class of passes, a plain function on a graph, or the dotted name of one of these."""


@dataclass(frozen=True)
class FunctionPass(GraphPass):
    """A plain function as a pass.

    Attributes:
        function: takes the graph, rewrites it in place, returns the number of matches or None.
    """

    function: Callable[[fx.Graph], int | None]

    def __call__(self, graph: fx.Graph) -> int | None:
        return self.function(graph)

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def identity(self) -> Identity:
        return identity_of(self.function, what=f"The pass {self.name}")


@dataclass(frozen=True)
class InductorPass(GraphPass):
    """A pass written for Inductor (callable, with a ``uuid()`` of its own) as one of ours.

    Attributes:
        inner: what Inductor would have called.
    """

    inner: Any

    def __call__(self, graph: fx.Graph) -> int | None:
        self.inner(graph)
        return None

    @property
    def name(self) -> str:
        return type(self.inner).__name__

    def identity(self) -> Identity:
        given = self.inner.uuid()
        if given is None:
            raise FingerprintError(
                f"The pass {self.name} has no identity: its uuid() is None",
                expected="bytes or text that change whenever the pass does something else",
                got="None",
                hint="return such a value, or compile with disable_cache",
            )
        text = f"{type(self.inner).__qualname__} {given!r}"
        return Identity(identity_of(text, what=self.name).digest, frozenset())

    def reads_range(self) -> bool:
        # Its code is not looked at, so it may.
        return True


def as_pass(given: PassLike, *, options: Mapping[str, Any] | None = None) -> GraphPass:
    """The pass that ``given`` stands for.

    Args:
        given: a pass, a pass class, a function ``(graph) -> int | None``, an Inductor pass, or the dotted
            name (``package.module.Name``) of one of these.
        options: fields for a pass class; nothing else takes any.

    Raises:
        ConfigError: it is none of these, its name cannot be resolved, or it does not take the options.
    """
    found = resolve(given) if isinstance(given, str) else given
    if isinstance(found, type) and hasattr(found, "uuid"):
        return as_pass(_made(found, options or {}))
    if options:
        raise ConfigError(
            f"The pass {_called(found)} takes no options",
            expected="a GraphPass class where options are given",
            got=", ".join(options),
            hint="remove the options, or make the pass a frozen dataclass with these fields",
        )
    if isinstance(found, GraphPass):
        return found
    if callable(found) and not isinstance(found, type):
        return InductorPass(found) if hasattr(found, "uuid") else FunctionPass(found)
    raise ConfigError(
        "This is not a graph pass",
        expected="a GraphPass, a function on a graph, or the dotted name of one",
        got=f"{found!r} ({type(found).__name__})",
    )


def resolve(name: str) -> Any:
    """What the dotted name ``package.module.Name`` stands for.

    Raises:
        ConfigError: no such module or attribute, or the module's import failed.
    """
    parts = name.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ConfigError(
            "The name of a pass is not a dotted name",
            expected="package.module.Name",
            got=repr(name),
        )
    module, attributes = _import(parts, name)
    value: Any = module
    for position, attribute in enumerate(attributes):
        if not hasattr(value, attribute):
            held = ".".join(parts[: len(parts) - len(attributes) + position])
            public = [known for known in dir(value) if not known.startswith("_")]
            raise ConfigError(
                f"The pass {name!r} does not exist",
                expected=f"an attribute {attribute!r} of {held}",
                got=f"{held} without it",
                hint=did_you_mean(attribute, public) or "check the spelling; the name is package.module.Name",
            )
        value = getattr(value, attribute)
    return value


def _import(parts: list[str], name: str) -> tuple[object, list[str]]:
    """The longest leading part of the name that is a module, and what is left of the name."""
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        try:
            return importlib.import_module(module), parts[length:]
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise _failed(name, module, error) from error
        except Exception as error:
            raise _failed(name, module, error) from error
    raise ConfigError(
        f"The pass {name!r} does not exist",
        expected=f"a module {'.'.join(parts[:-1])!r} that can be imported",
        got="no such module",
        hint="check the spelling, and that its folder is on the module search path",
    )


def _failed(name: str, module: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"The pass {name!r} cannot be loaded: importing {module} failed",
        got=f"{type(error).__name__}: {error}",
        hint=f"import {module} in a Python shell to see where",
    )


def _made(cls: type[Any], options: Mapping[str, Any]) -> Any:
    try:
        return cls(**options)
    except TypeError as error:
        raise ConfigError(
            f"The pass {cls.__qualname__} cannot be made from its options",
            expected=f"{cls.__qualname__}{inspect.signature(cls)}",
            got=", ".join(f"{name}={value!r}" for name, value in options.items()) or "no options",
            hint=_meant(cls, options) or "give its fields in pass_config under the pass's name",
        ) from error


def _meant(cls: type[Any], options: Mapping[str, Any]) -> str | None:
    """What options that the class lacks were probably meant to be."""
    known = [one.name for one in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    lacking = [name for name in options if name not in known]
    return "; ".join(hint for name in lacking if (hint := did_you_mean(name, known))) or None


def _called(value: object) -> str:
    return value.name if isinstance(value, GraphPass) else getattr(value, "__name__", repr(value))
