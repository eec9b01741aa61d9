"""What one use of ``splitting_op`` says, checked before torch defines anything."""

from __future__ import annotations

import functools
import inspect
import keyword
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import torch

from torch_piecewise.errors import SplitError
from torch_piecewise.splitting_ops_signature import (
    check_signature,
    checked_body,
    checked_written,
    unsupported_type,
)
from torch_piecewise.torch_private.splitting_ops import OpSchema, read_schema

_NAME = re.compile(r"[A-Za-z_]\w*::[A-Za-z_]\w*")
_SCHEMA = re.compile(r"\(.*\)\s*->\s*.*", re.DOTALL)


@dataclass(frozen=True)
class Definition:
    """One op, as the decorator was told.

    Attributes:
        fake: given or default.
        devices: empty for all.
    """

    name: str
    body: Callable[..., Any]
    fake: Callable[..., Any]
    schema: OpSchema
    devices: tuple[str, ...]

    @property
    def origin(self) -> str:
        return f"{self.body.__module__}.{self.body.__qualname__}"


def checked_name(name: object) -> str:
    """``name``, if it can name an op.

    Raises:
        SplitError: it cannot.
    """
    if not isinstance(name, str):
        raise SplitError(
            "splitting_op was used without a name",
            expected='@splitting_op("namespace::name", mutates_args=(...))',
            got=f"splitting_op({name!r})",
            hint="call it with the name first, and decorate the function with what it returns",
        )
    if not _NAME.fullmatch(name) or any(map(keyword.iskeyword, name.split("::"))):
        raise SplitError(
            f"{name!r} cannot be the name of an op",
            expected="namespace::name, each a Python identifier and no keyword",
            got=repr(name),
            hint="choose a namespace of your own: 'mylib::attention'",
        )
    return name


def with_fake(definition: Definition, fake: Callable[..., Any]) -> Definition:
    """``definition`` with another fake.

    Raises:
        SplitError: the fake does not take the op's arguments.
    """
    checked = _checked_fake(definition.name, definition.body, fake, definition.schema)
    return replace(definition, fake=checked)


def checked_definition(
    name: str,
    body: Callable[..., Any],
    *,
    mutates_args: Iterable[str],
    fake: Callable[..., Any] | None,
    device_types: str | Sequence[str] | None,
    schema: str | None,
) -> Definition:
    """What the decorator was told, as a value; the arguments are those of ``splitting_op``.

    Everything that can be wrong is found here, before torch has defined anything.

    Raises:
        SplitError: something is wrong.
    """
    function = checked_body(name, body)
    written = checked_written(name, mutates_args)
    facts = _read(name, schema if schema is not None else _infer(name, function, written))
    _check_schema(name, body, written, facts)
    devices = _checked_devices(name, device_types)
    return Definition(name, body, _checked_fake(name, body, fake, facts), facts, devices)


def _checked_devices(name: str, device_types: str | Sequence[str] | None) -> tuple[str, ...]:
    devices = (device_types,) if isinstance(device_types, str) else tuple(device_types or ())
    for device in devices:
        try:
            torch.device(device)
        except RuntimeError as error:
            raise SplitError(
                f"{name}: device_types names an unknown kind of device",
                expected="'cpu', 'cuda', ... or None for all",
                got=repr(device),
            ) from error
    return devices


def _infer(name: str, body: FunctionType, written: tuple[str, ...]) -> str:
    check_signature(name, body, written)
    try:
        # A decorated body: its annotations are texts about the module of what it wraps.
        return torch.library.infer_schema(inspect.unwrap(body), mutates_args=written)
    except ValueError as error:
        raise unsupported_type(name, body, error) from error


def _read(name: str, schema: str) -> OpSchema:
    expected = "a schema without a name, like '(Tensor x, Tensor(a!) out) -> ()'"
    if not _SCHEMA.fullmatch(schema):
        raise SplitError(f"{name}: this is no schema", expected=expected, got=repr(schema))
    try:
        return read_schema(schema)
    except RuntimeError as error:
        raise SplitError(
            f"{name}: torch cannot read its schema", expected=expected, got=f"{schema!r}: {first_line(error)}"
        ) from error


def _check_schema(name: str, body: Callable[..., Any], written: tuple[str, ...], facts: OpSchema) -> None:
    parameters = tuple(inspect.signature(body).parameters)
    if facts.arguments != parameters:
        raise SplitError(
            f"{name}: the schema has other argument names than {body.__qualname__}",
            expected=_listed(parameters),
            got=_listed(facts.arguments),
        )
    if written and set(written) != set(facts.written):
        raise SplitError(
            f"{name}: mutates_args and schema disagree about what is written",
            expected=_listed(facts.written),
            got=_listed(written),
            hint="leave mutates_args out where a schema is given",
        )
    if facts.keyword_only_tensors:
        raise SplitError(
            f"{name} has keyword-only tensors: {quoted(facts.keyword_only_tensors)}",
            expected="tensors that can be given by position",
            hint="move them before the * of the signature",
        )
    if not facts.written and facts.returns == 0:
        raise SplitError(
            f"{name} writes nothing and returns nothing, so it would be removed as dead code",
            expected="an op that returns a tensor or writes to an argument",
            hint="name the tensors it writes to in mutates_args",
        )


def _checked_fake(
    name: str, body: Callable[..., Any], fake: Callable[..., Any] | None, facts: OpSchema
) -> Callable[..., Any]:
    if fake is None:
        return _by_body(name, body) if facts.returns else _nothing
    if not callable(fake):
        raise SplitError(
            f"{name}: its fake is nothing that can be called",
            expected="a function that makes empty outputs of the right sizes",
            got=f"{fake!r} ({type(fake).__name__})",
            hint="leave fake out, or give one: fake=lambda q, k, v: torch.empty_like(q)",
        )
    try:
        signature = inspect.signature(fake)
    except ValueError:
        return fake  # a builtin without a signature (torch.empty_like) can only be tried
    parameters = inspect.signature(body).parameters.values()
    keyword_only = {p.name: p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    try:
        signature.bind(*(p.name for p in parameters if p.name not in keyword_only), **keyword_only)
    except TypeError as error:
        raise SplitError(
            f"{name}: its fake does not take the op's arguments",
            expected=_listed(facts.arguments),
            got=f"{signature}: {error}",
        ) from error
    return fake


def _by_body(name: str, body: Callable[..., Any]) -> Callable[..., Any]:
    """The body as its own fake: torch operations alone know the sizes of their results."""

    @functools.wraps(body)
    def fake(*args: Any, **kwargs: Any) -> Any:
        try:
            return body(*args, **kwargs)
        except Exception as error:
            raise SplitError(
                f"{name} has no fake, and its body cannot run on tensors without data",
                expected="a body of torch operations on its arguments alone, or a fake",
                got=f"{type(error).__name__}: {first_line(error)}",
                hint="say what it returns: fake=lambda q, k, v: torch.empty_like(q)",
            ) from error

    return fake


def _nothing(*_args: object, **_kwargs: object) -> None:
    return None


def first_line(error: Exception) -> str:
    """The first line of a foreign error, which says what went wrong."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def quoted(names: Iterable[str]) -> str:
    """Names for a message: ``'a', 'b'``."""
    return ", ".join(repr(name) for name in names)


def _listed(names: Iterable[str]) -> str:
    return f"({', '.join(names)})"
