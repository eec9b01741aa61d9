"""``Config``: every setting, frozen and checked; the one place where the environment is read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch_piecewise.capture_sizes import default_capture_sizes
from torch_piecewise.config.fields import ConfigFields
from torch_piecewise.config.fields_setting import CAPTURE_SIZES, Setting
from torch_piecewise.config.ingredients import as_text, stable_name
from torch_piecewise.config.rules import contradiction
from torch_piecewise.config.table import Describe, FieldDoc
from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.errors import ConfigError, did_you_mean
from torch_piecewise.ranges import UNBOUNDED, Range, ranges_from_endpoints

ENV_PREFIX = "TORCH_PIECEWISE_"
DEFAULT_MAX_CAPTURE_SIZE = 512


@dataclass(frozen=True, kw_only=True, repr=False)
class Config(ConfigFields):
    """All settings of one compiled model; :meth:`describe` lists them with their meaning.

    Lists become tuples, mappings become frozen ones, sizes are sorted with duplicates dropped. The
    environment is not read here: :meth:`from_env` and :meth:`with_env` do that.

    Raises:
        ConfigError: a field is unknown, has a value it cannot have, or contradicts another.
    """

    def __new__(cls, **fields: object) -> Self:
        # Runs before the generated __init__, whose TypeError would not say which fields there are.
        _refuse_unknown(fields)
        config = super().__new__(cls)
        object.__setattr__(config, "_explicit", frozenset(fields))
        object.__setattr__(config, "_environment", frozenset())
        return config

    def __post_init__(self) -> None:
        for name, setting in settings().items():
            object.__setattr__(self, name, setting.kind.check(name, getattr(self, name)))
        error = contradiction(self._values())
        if error is not None:
            raise error

    def __repr__(self) -> str:
        changed = (
            f"{field.name}={_repr(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )
        return f"Config({', '.join(changed)})"

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> Self:
        """The config with these fields, as ``torch.compile(options=...)`` gives them."""
        return cls(**fields)  # type: ignore[arg-type]  # checked at run time, field by field

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **fields: object) -> Self:
        """The config of these fields, and of the environment where a field is not given.

        ``TORCH_PIECEWISE_<FIELD>`` holds a word, a number, true/false/1/0, a comma list
        (``1,8,64``) or JSON (``{"input_ids": 0}``); ``none`` is None where the field takes it; an
        empty text counts as not set.

        Args:
            env: variables by name; None for the process's own.
            fields: these beat the environment.

        Raises:
            ConfigError: also for a variable with the prefix that names no field.
        """
        _refuse_unknown(fields)
        read = _read_env(os.environ if env is None else env)
        config = cls.from_fields({**read, **fields})
        object.__setattr__(config, "_environment", frozenset(read) - fields.keys())
        return config

    @classmethod
    def given(cls, config: Self | None, fields: Mapping[str, object], *, to: str) -> Self:
        """The settings that a door was handed: a config or None, fields that override it; the environment.

        Args:
            to: the door, for messages: ``"tp.compile"``.

        Raises:
            ConfigError: ``config`` is something else, or a field is unknown or malformed.
        """
        if config is not None and not isinstance(config, cls):
            raise ConfigError(
                f"config of {to} is no Config",
                expected="tp.Config(...) or None",
                got=type(config).__name__,
                hint=f"give settings as keyword arguments: {to}(..., backend='eager')",
            )
        base = config if config is not None else cls()
        return (base.replace(**fields) if fields else base).with_env()

    @property
    def explicit(self) -> frozenset[str]:
        """Names of the fields that were given, whatever their value."""
        names: frozenset[str] = self.__dict__["_explicit"]
        return names

    def with_env(self, env: Mapping[str, str] | None = None) -> Self:
        """This config, with the environment's values for fields that were not given (:attr:`explicit`)."""
        return self.from_env(env, **self._given())

    def replace(self, **fields: object) -> Self:
        """This config with other values for some fields, checked anew."""
        return self.from_fields({**self._given(), **fields})

    def dynamic_dims(self) -> dict[str, dict[int, str | None]]:
        """``dynamic_arg_dims`` as ``{argument: {dim: symbol name or None}}``; empty for None."""
        return _plain_dims(self.dynamic_arg_dims)

    def unbacked_dims(self) -> dict[str, tuple[int, ...]]:
        """``mark_unbacked_dims`` as ``{argument: dims}``; empty for None."""
        return {name: tuple(dims) for name, dims in _plain_dims(self.mark_unbacked_dims).items()}

    def dispatch_dim(self) -> tuple[str, int] | None:
        """The argument and the dim that ranges and sizes are about.

        Without ``dispatch_on`` the first of ``dynamic_arg_dims``; None where that is not given either
        and the model's annotations decide.
        """
        if self.dispatch_on is not None:
            name, _, dim = self.dispatch_on.rpartition(".")
            return name, int(dim)
        return next(((name, dim) for name, dims in self.dynamic_dims().items() for dim in dims), None)

    def compile_ranges(self) -> tuple[Range, ...]:
        """The ranges that ``compile_ranges_endpoints`` cuts the sizes from 1 up into."""
        # The last range is open anyway; sys.maxsize is how some write that.
        return ranges_from_endpoints(end for end in self.compile_ranges_endpoints if end < UNBOUNDED)

    def resolved_capture_sizes(self) -> tuple[int, ...]:
        """The sizes that are captured, sorted: those given, else a ladder, else none in mode ``NONE``."""
        if self.cudagraph_capture_sizes is not None:
            return tuple(self.cudagraph_capture_sizes)
        if not self.cudagraph_mode:
            return ()
        return default_capture_sizes(self.max_cudagraph_capture_size or DEFAULT_MAX_CAPTURE_SIZE)

    def resolved_compile_sizes(self) -> tuple[int, ...]:
        """``compile_sizes`` as plain numbers, sorted, each once."""
        sizes = {size for size in self.compile_sizes if isinstance(size, int)}
        if CAPTURE_SIZES in self.compile_sizes:
            sizes.update(self.resolved_capture_sizes())
        return tuple(sorted(sizes))

    def inductor_settings(self) -> dict[str, Any]:
        """What Inductor's own configuration is patched with for every compile."""
        own = {"assume_32bit_indexing": True} if self.assume_32_bit_indexing else {}
        return {**own, **self.inductor_compile_config}

    def as_ingredients(self, name_of: Callable[[object], str] = stable_name) -> list[tuple[str, str]]:
        """The settings that can change what is compiled, as (name, text) for cache keys.

        Equal settings give equal texts, also where they are written differently (a word for the sizes
        it stands for). The order is that of the fields.

        Args:
            name_of: names an object that is no plain data (a predicate, a pass, a class).

        Raises:
            FingerprintError: ``name_of`` refused an object, so nothing can be kept under this config.
        """
        meant = {
            "dispatch_on": self.dispatch_dim(),
            "compile_sizes": self.resolved_compile_sizes(),
            "backend": self.backend if isinstance(self.backend, str) else _compiler_text(self.backend),
            "inductor_passes": list(self.inductor_passes.items()),
        }
        keyed = (name for name, setting in settings().items() if setting.keyed)
        return [(name, as_text(meant.get(name, getattr(self, name)), name_of)) for name in keyed]

    describe = Describe()

    def rows(self) -> tuple[FieldDoc, ...]:
        """The rows of :meth:`describe`."""
        return tuple(
            FieldDoc(
                name=name,
                value=getattr(self, name),
                source=self._source(name),
                default=field.default,
                expected=setting.kind.expected,
                doc=setting.doc,
                used_by=setting.used_by,
                env_var=env_var(name),
            )
            for field, (name, setting) in zip(dataclasses.fields(self), settings().items(), strict=True)
        )

    def _source(self, name: str) -> str:
        if name in self.__dict__["_environment"]:
            return env_var(name)
        return "given" if name in self.explicit else "default"

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in settings()}

    def _given(self) -> dict[str, object]:
        return {name: value for name, value in self._values().items() if name in self.explicit}


def settings() -> dict[str, Setting]:
    """Each field's :class:`~torch_piecewise.config.fields_setting.Setting`, by name, in order."""
    return {field.name: field.metadata["setting"] for field in dataclasses.fields(ConfigFields)}


def env_var(name: str) -> str:
    """The environment variable of a field."""
    return ENV_PREFIX + name.upper()


_OF_TORCH_COMPILE = {
    "fullgraph": "leave fullgraph out: a model is always traced as one graph",
    "dynamic": "name the dims that change: dynamic_arg_dims={'x': 0}",
    "options": "give Inductor's options as inductor_compile_config={...}, and settings by their own names",
}
"""What people bring along from ``torch.compile``, and what to write instead."""


def _refuse_unknown(fields: Mapping[str, object]) -> None:
    known = settings()
    unknown = [name for name in fields if name not in known]
    if unknown:
        hints = [
            hint for name in unknown if (hint := _OF_TORCH_COMPILE.get(name) or did_you_mean(name, known))
        ]
        raise ConfigError(
            f"Config has no field {', '.join(map(repr, unknown))}",
            expected=f"one of {', '.join(known)}",
            hint="; ".join(hints) or "remove it",
        )


def _read_env(env: Mapping[str, str]) -> dict[str, object]:
    known = {env_var(name): name for name in settings()}
    read: dict[str, object] = {}
    for variable, text in env.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        if variable not in known:
            raise ConfigError(
                f"the environment variable {variable} names no field of Config",
                expected=f"{ENV_PREFIX}<FIELD>, the field being one of {', '.join(known.values())}",
                hint=_variable_meant(variable) or f"unset {variable}",
            )
        if text.strip():
            read[known[variable]] = _from_text(variable, known[variable], text.strip())
    return read


def _variable_meant(variable: str) -> str | None:
    hint = did_you_mean(variable.removeprefix(ENV_PREFIX), settings())
    for name in settings() if hint is not None else ():
        hint = str(hint).replace(f"'{name}'", env_var(name))
    return hint


def _from_text(variable: str, name: str, text: str) -> object:
    kind = settings()[name].kind
    label = f"the environment variable {variable} (field {name})"
    try:
        value = kind.parse(text)
    except ValueError:
        raise ConfigError(
            f"{label} cannot be read",
            expected=kind.expected,
            got=repr(text),
            hint=f"write a comma list or JSON where it is a list or a mapping, or unset {variable}",
        ) from None
    return kind.check(label, value)


def _plain_dims(dims: Mapping[str, Any] | None) -> dict[str, dict[int, str | None]]:
    return {name: dict(given) for name, given in (dims or {}).items()}


def _compiler_text(compiler: Any) -> str:
    """A compiler given as an object, as its dotted name; its fingerprint has its own place in keys."""
    return f"{type(compiler).__module__}.{type(compiler).__qualname__}"


def _repr(value: object) -> str:
    return repr(value.name) if isinstance(value, CUDAGraphMode) else repr(value)
