"""The kinds of value that only this library's settings have: cuts, dims, passes, graph modes."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch_piecewise.config.kinds import Dotted, Name, as_int, bad_value
from torch_piecewise.cudagraph_mode import STATIC_GRAPH_VERBS, CUDAGraphMode
from torch_piecewise.errors import ConfigError, did_you_mean
from torch_piecewise.frozen_map import FrozenMap

_OP_NAME = re.compile(r"\w+::\w+(\.\w+)?")
_OP_TEXT = re.compile(r"\w+\.\w+(\.\w+)?")
_MODULE_CLASS = "torch.nn.modules.module.Module"


def _is_module_class(cls: type) -> bool:
    # By name, so that reading settings does not import torch.
    return any(f"{base.__module__}.{base.__qualname__}" == _MODULE_CLASS for base in cls.__mro__)


@dataclass(frozen=True)
class SplittingOp:
    """One place to cut: an operation by name, a module class, or a predicate on a node."""

    @property
    def expected(self) -> str:
        return (
            "'ns::op', 'ns::op.overload', a dotted name of a torch function or module class, "
            "a subclass of torch.nn.Module, or a function (node) -> bool"
        )

    def check(self, label: str, value: object) -> str | type | Callable[..., Any]:
        if isinstance(value, str):
            return self._name(label, value)
        if isinstance(value, type):
            if _is_module_class(value):
                return value
            raise bad_value(label, self, value, "give a class derived from torch.nn.Module")
        # What tp.splitting_op makes is callable too, and stands on a higher floor: known by its name.
        name = getattr(value, "name", None)
        if isinstance(name, str) and _OP_NAME.fullmatch(name):
            return name
        if self._is_an_operation(value):
            return self._op(label, value)
        if not callable(value) or not isinstance(value, Hashable):
            raise bad_value(label, self, value, "a predicate is a function, or a hashable object to call")
        return value

    def parse(self, text: str) -> object:
        return text

    def _name(self, label: str, text: str) -> str:
        if _OP_NAME.fullmatch(text):
            return text
        try:
            return Dotted().check(label, text)
        except ConfigError:
            raise bad_value(label, self, text, "an operation's name has its namespace in it") from None

    def _op(self, label: str, value: object) -> str:
        text = str(value)
        if _OP_TEXT.fullmatch(text):
            return text.replace(".", "::", 1)
        named = _OP_NAME.search(text)
        if named is None:
            raise bad_value(label, self, value, "torch's own functions go in by dotted name, as text")
        return named.group()

    def _is_an_operation(self, value: object) -> bool:
        # Any callable could be a predicate; one of torch's own is surely meant as the place to cut,
        # and called with a node it would do something quite different.
        homes = (getattr(value, "__module__", None), type(value).__module__)
        from_torch = any(isinstance(home, str) and home.split(".")[0] == "torch" for home in homes)
        # Functions written in C (torch.mm) do not say where they belong, but no predicate is one.
        return from_torch or isinstance(value, types.BuiltinFunctionType)


@dataclass(frozen=True)
class Dims:
    """Dims per argument, held as ``{argument: {dim: symbol name or None}}``, the order kept.

    Attributes:
        named: whether dims may be given a symbol name.
    """

    named: bool

    @property
    def expected(self) -> str:
        names = ", or {dim: symbol name}" if self.named else ""
        return f"a mapping from an argument's name to a dim, a list of dims{names}"

    def check(self, label: str, value: object) -> FrozenMap[str, FrozenMap[int, str | None]]:
        if not isinstance(value, Mapping):
            raise bad_value(label, self, value, "write it as {'input_ids': 0}")
        return FrozenMap(
            {
                Name().check(f"{label}'s argument name", name): self._dims(f"{label}[{name!r}]", dims)
                for name, dims in value.items()
            }
        )

    def parse(self, text: str) -> object:
        value = json.loads(text)
        if not isinstance(value, dict):
            return value
        # JSON has no integer keys.
        return {name: _with_int_keys(dims) for name, dims in value.items()}

    def _dims(self, label: str, dims: object) -> FrozenMap[int, str | None]:
        given: list[tuple[object, object]]
        if isinstance(dims, Mapping):
            given = list(dims.items())
        elif isinstance(dims, Sequence) and not isinstance(dims, (str, bytes)):
            given = [(dim, None) for dim in dims]
        else:
            given = [(dims, None)]
        if not given:
            raise bad_value(label, self, dims, "name at least one dim, or leave the argument out")
        return FrozenMap({self._dim(label, dim): self._symbol(label, symbol) for dim, symbol in given})

    def _dim(self, label: str, dim: object) -> int:
        number = as_int(dim)
        if number is None:
            raise bad_value(label, self, dim, "a dim is an integer; a negative one counts from the last dim")
        return number

    def _symbol(self, label: str, symbol: object) -> str | None:
        if symbol is None:
            return None
        if not self.named:
            raise bad_value(label, self, symbol, "these dims have no symbol names")
        return Name().check(f"{label}'s symbol name", symbol)


def _with_int_keys(dims: object) -> object:
    if not isinstance(dims, dict):
        return dims
    return {int(dim): symbol for dim, symbol in dims.items()}


@dataclass(frozen=True)
class ArgumentDim:
    """One dim of one argument, as text: ``argument.dim``."""

    @property
    def expected(self) -> str:
        return "'argument.dim', such as 'input_ids.1'"

    def check(self, label: str, value: object) -> str:
        if not isinstance(value, str):
            raise bad_value(label, self, value)
        name, _, dim = value.rpartition(".")
        if not name.isidentifier() or not re.fullmatch(r"-?\d+", dim):
            raise bad_value(label, self, value)
        return f"{name}.{int(dim)}"

    def parse(self, text: str) -> object:
        return text


@dataclass(frozen=True)
class CompilerChoice:
    """What compiles a piece: one of a few words, the dotted name of a class, or a compiler itself."""

    words: tuple[str, ...]

    @property
    def expected(self) -> str:
        return f"{Dotted(self.words).expected}, or a compiler: an object with {', '.join(_COMPILER_VERBS)}"

    def check(self, label: str, value: object) -> object:
        if isinstance(value, str):
            return Dotted(self.words).check(label, value)
        if isinstance(value, type):
            raise bad_value(label, self, value, f"give an instance, {value.__name__}(), or its dotted name")
        missing = [verb for verb in _COMPILER_VERBS if not _has(value, verb)]
        if missing:
            raise bad_value(label, self, value, f"a {type(value).__name__} lacks {', '.join(missing)}")
        return value

    def parse(self, text: str) -> object:
        return text


@dataclass(frozen=True)
class StaticGraphChoice:
    """What captures and replays: the dotted name of a class, or the class."""

    @property
    def expected(self) -> str:
        return f"{Dotted().expected}, or such a class: one with {', '.join(STATIC_GRAPH_VERBS)}"

    def check(self, label: str, value: object) -> object:
        if isinstance(value, str):
            return Dotted().check(label, value)
        if not isinstance(value, type):
            raise bad_value(label, self, value, "give the class itself, which is made where it is needed")
        missing = [verb for verb in STATIC_GRAPH_VERBS if not callable(getattr(value, verb, None))]
        if missing:
            raise bad_value(label, self, value, f"{value.__name__} lacks {', '.join(missing)}")
        return value

    def parse(self, text: str) -> object:
        return text


_COMPILER_VERBS = ("name", "fingerprint()", "compile(piece, range, options)", "load(artifact)")


def _has(value: object, verb: str) -> bool:
    member = getattr(value, verb.partition("(")[0], None)
    return callable(member) if "(" in verb else isinstance(member, str)


@dataclass(frozen=True)
class GraphMode:
    """A :class:`CUDAGraphMode`, its name in any case, or None for ``NONE``."""

    @property
    def expected(self) -> str:
        return f"a CUDAGraphMode or its name: {', '.join(CUDAGraphMode.__members__)}; None means NONE"

    def check(self, label: str, value: object) -> CUDAGraphMode:
        if value is None:
            return CUDAGraphMode.NONE
        if isinstance(value, CUDAGraphMode):
            return value
        if isinstance(value, str) and value.upper() in CUDAGraphMode.__members__:
            return CUDAGraphMode[value.upper()]
        names = [name.lower() for name in CUDAGraphMode.__members__]
        raise bad_value(label, self, value, did_you_mean(value, names))

    def parse(self, text: str) -> object:
        return text


@dataclass(frozen=True)
class Function:
    """Something to call, or the dotted name of it."""

    @property
    def expected(self) -> str:
        return "a function, or a dotted name such as 'package.module.name'"

    def check(self, label: str, value: object) -> object:
        if callable(value):
            return value
        try:
            return Dotted().check(label, value)
        except ConfigError:
            raise bad_value(label, self, value) from None

    def parse(self, text: str) -> object:
        return text


def pad_value(label: str, value: object) -> object:
    """A number to pad an argument with."""
    if isinstance(value, bool | int | float):
        return value
    raise ConfigError(
        f"{label} has a value it cannot have",
        expected="a number",
        got=f"{value!r} ({type(value).__name__})",
        hint="give the value that is harmless to the model, such as -1 for a cache slot",
    )


def pass_entry(label: str, value: object) -> object:
    """A graph pass: something to call with a graph, or the dotted name of one."""
    if callable(value):
        return value
    try:
        return Dotted().check(label, value)
    except ConfigError:
        raise ConfigError(
            f"{label} has a value it cannot have",
            expected="a pass (something to call with a graph), or a dotted name like 'package.module.Name'",
            got=f"{value!r} ({type(value).__name__})",
            hint="give the pass itself, or where it can be imported from",
        ) from None


def pass_options(label: str, value: object) -> object:
    """Whether a built-in pass runs, or the options it runs with."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return own_copy(label, value)
    raise ConfigError(
        f"{label} has a value it cannot have",
        expected="True (run it), False (leave it out), or a mapping from its option names to values",
        got=f"{value!r} ({type(value).__name__})",
        hint="write True, False, or {'option': value}",
    )


def own_copy(label: str, value: object) -> object:
    """``value``, with lists and mappings in it copied, so that the caller's own can change freely."""
    if isinstance(value, Mapping):
        return {key: own_copy(label, item) for key, item in value.items()}
    if isinstance(value, list):
        return [own_copy(label, item) for item in value]
    return value
