"""Cheap checks of a call's own inputs, made from what the trace read.

Dynamo lists everything it looked at. What hangs on the call's arguments becomes a Python expression here;
what hangs on the model (its attributes, hooks, globals) is not checked on each call, except its training
flag and, elsewhere, its parameters, buffers and submodules.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from torch_piecewise.call_checks import autocast_state, from_numpy, sharing, told
from torch_piecewise.convention import Check, Convention
from torch_piecewise.input_guards_written import as_long, is_container, is_item, writes_containers
from torch_piecewise.piece import Dim, InputSpec, TensorSpec
from torch_piecewise.torch_private.dynamo import InputGuard, RawCapture
from torch_piecewise.torch_private.shapes import size_sources, symbol_sources

_CONSTANTS = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, complex)
BY_VALUE = frozenset(("CONSTANT_MATCH", "EQUALS_MATCH", "NONE_MATCH", "BOOL_MATCH", "BOOL_FALSE"))
_BY_CONTENTS = frozenset(("SET_CONTAINS", "SET_NOT_CONTAINS"))
BY_LENGTH = frozenset(("SEQUENCE_LENGTH", "LIST_LENGTH", "TUPLE_LENGTH", "DICT_LENGTH", "RANGE_MATCH"))
BY_KEYS = frozenset(
    (
        "DICT_KEYS",
        "DICT_KEYS_MATCH",
        "DICT_CONST_KEYS",
        "DICT_CONTAINS",
        "DICT_NOT_CONTAINS",
        "MAPPING_KEYS_CHECK",
    )
)
BY_IDENTITY = frozenset(("ID_MATCH", "CLASS_MATCH", "FUNCTION_MATCH", "MODULE_MATCH", "BUILTIN_MATCH"))
_BY_TYPE = frozenset(("TYPE_MATCH", "NN_MODULE", "DATA_PTR_MATCH", "WEAKREF_ALIVE"))
_BY_ATTRIBUTE = frozenset(("HASATTR", "NOT_PRESENT_IN_GENERIC_DICT"))

_GLOBAL = re.compile(r"G\['(?P<name>\w+)'\]")

_LOCAL = re.compile(r"L\['(?P<name>\w+)'\]")

_ITEM = re.compile(r"(?P<mapping>L\['\w+'\].*)\['(?P<key>[^']*)'\]")

_ABSENT: Any = object()


def convention_of(
    raw: RawCapture,
    owner_name: str | None,
    frame: Mapping[str, Any],
    specs: Sequence[InputSpec | None],
    changed: Iterable[str] = (),
) -> Convention:
    """The calling convention of one trace.

    Args:
        owner_name: name of the frame's local that is the model itself, whose attributes are not checked.
        frame: the frame's locals at the trace, closed-over ones included.
        specs: description of each graph input, in order.
        changed: sources of the graph inputs that the graph changes in place.
    """
    writer = _Writer(raw, owner_name, frame, specs)
    checks = [
        *_mode_checks(owner_name, frame),
        *writer.owner_checks(owner_name),
        *writer.global_checks(),
        *writer.checks(),
        *writer.sharing_checks(set(changed)),
    ]
    return Convention(
        owner_name=owner_name,
        sources=raw.sources,
        specs=tuple(specs),
        checks=tuple({check.expression: check for check in checks}.values()),
        values=writer.values,
        tail=raw.tail,
        tail_imports=raw.tail_imports,
        tail_builtins=raw.tail_builtins,
    )


def _mode_checks(owner_name: str | None, frame: Mapping[str, Any]) -> list[Check]:
    grad = torch.is_grad_enabled()
    checks = [
        Check(
            f"§grad_enabled() is {grad}",
            f"grad mode was {'on' if grad else 'off'} in the trace",
            "§grad_enabled()",
        ),
        Check("§autocast() == §traced_autocast", "autocast differs from the trace", "§autocast()"),
    ]
    owner = frame.get(owner_name) if owner_name is not None else None
    if isinstance(owner, torch.nn.Module):
        mode = owner.training
        checks.append(
            Check(f"§owner.training is {mode}", f"training was {mode} in the trace", "§owner.training")
        )
    return checks


class _Writer:
    """Turns what the trace read of the call's arguments into checks."""

    def __init__(
        self, raw: RawCapture, owner_name: str | None, frame: Mapping[str, Any], specs: Sequence[Any]
    ) -> None:
        self.values: dict[str, Any] = {"§traced_autocast": autocast_state()}
        self._raw = raw
        self._owner = f"L[{owner_name!r}]"
        self._frame = frame
        self._closed_over = frozenset(raw.traced.__code__.co_freevars)
        self._specs = dict(zip(raw.sources, specs, strict=True))
        self._writes = writes_containers(raw.tail)
        self._dynamic = size_sources(raw.shape_env)
        sources = symbol_sources(raw.shape_env, raw.sources, raw.fakes)
        self._readers = {symbol: self._local(source) for symbol, source in sources.items()}

    def owner_checks(self, owner_name: str | None) -> list[Check]:
        """Of the model's own attributes: training flags that were read, and what its code itself changes.

        Other attributes are not checked on each call; one that ``forward`` writes (a counter), or a list that
        it appends to, is another on the next call by itself.
        """
        if owner_name is None:
            return []
        made = []
        for guard in self._raw.guards:
            name = guard.path.rpartition(".")[2]
            if not guard.path.startswith(self._owner):
                continue
            expression = guard.path.replace(self._owner, "§owner")
            shown = guard.path.replace(self._owner, "the model")
            if self._writes and guard.kind in BY_LENGTH and is_container(guard.path, self._value(guard.path)):
                made.append(as_long(expression, shown, self._value(guard.path)))
                continue
            is_written = self._writes and guard.kind in BY_VALUE and is_item(guard.path)
            own = name.isidentifier() and (name == "training" or name in self._raw.written_attributes)
            if not own and not is_written:
                continue
            value = self._value(guard.path)
            if not isinstance(value, bool | int | float | str | None):
                continue
            label = self._keep("own", guard.path, value)
            made.append(_unchanged(expression, label, shown, value))
        return made

    def global_checks(self) -> list[Check]:
        """One for each plain value of a module, of the model's own or of a helper's, that the trace read.

        Files are compared when a program is taken from the store; a value set while a process runs is not in
        any file.
        """
        made = []
        for guard in self._raw.guards:
            value = self._value(guard.path) if guard.path.startswith("G['") else _ABSENT
            is_written = self._writes and guard.kind in BY_LENGTH and is_container(guard.path, value)
            plain = guard.kind in BY_VALUE and isinstance(value, bool | int | float | str | None)
            if not plain and not is_written:
                continue
            match = _GLOBAL.match(guard.path)
            if match is None or match["name"].partition("_dot_")[0] in ("torch", "__import_torch"):
                continue
            table, name, rest = "§globals", match["name"], guard.path[match.end() :]
            if name.startswith("__import_"):
                table, name = "§modules", name.removeprefix("__import_").replace("_dot_", ".")
            expression, shown = f"{table}[{name!r}]{rest}", f"the global {name}{rest}"
            if is_written:
                made.append(as_long(expression, shown, value))
                continue
            label = self._keep("global", guard.path, value)
            made.append(_unchanged(expression, label, shown, value))
        return [dataclasses.replace(check, surroundings=True) for check in made]

    def checks(self) -> list[Check]:
        """One for each thing that was read of an argument, and for each tensor that was read twice."""
        made = []
        for guard in self._raw.guards:
            check, paths = None, [guard.path]
            if guard.kind == "DUPLICATE_INPUT":
                check, paths = self._same_tensor(guard), [guard.path, guard.about]
            elif self._is_argument(guard.path):
                value = self._value(guard.path)
                check = self._check(guard, value) if value is not _ABSENT else None
                if check is not None:
                    check = self._where_there_is_one(guard.path, check)
            if check is not None:
                made.append(dataclasses.replace(check, surroundings=self._is_closed_over(*paths)))
        return made

    def sharing_checks(self, changed: set[str]) -> list[Check]:
        """Where the graph changes an argument in place: which arguments lie in one memory."""
        tensors = [
            source
            for source, fake in zip(self._raw.sources, self._raw.fakes, strict=True)
            if isinstance(fake, torch.Tensor) and fake.layout is torch.strided and self._is_argument(source)
        ]
        if not changed & set(tensors) or len(tensors) < 2:
            return []
        names = [self._local(source) for source in tensors]
        traced = sharing(*map(self._value, tensors))
        call = f"§sharing({', '.join(names)})"
        text = f"{', '.join(names)} shared memory as {traced}"
        return [Check(f"{call} == {traced}", text, call, self._is_closed_over(*tensors))]

    # -- one guard

    def _check(self, guard: InputGuard, value: Any) -> Check | None:
        local, kind = self._local(guard.path), guard.kind
        if kind == "TENSOR_MATCH" and isinstance(value, torch.Tensor):
            return self._tensor(guard.path, local, value)
        if kind in BY_VALUE or kind in _BY_CONTENTS:
            return self._constant(guard.path, local, value)
        if kind in BY_LENGTH:
            return Check(
                f"{self._type_is(guard.path, local, value)} and len({local}) == {len(value)}",
                f"{local} had length {len(value)}",
                f"len({local}) if hasattr({local}, '__len__') else type({local}).__name__",
            )
        if kind in BY_KEYS and isinstance(value, Mapping):
            return Check(
                f"{self._type_is(guard.path, local, value)} and list({local}) == {list(value)!r}",
                f"{local} had keys {list(value)!r}",
                f"list({local}) if hasattr({local}, 'keys') else type({local}).__name__",
            )
        if kind in _BY_ATTRIBUTE:
            has = hasattr(value, guard.about)
            return Check(
                f"hasattr({local}, {guard.about!r}) is {has}",
                f"{local} had {'an' if has else 'no'} attribute {guard.about!r}",
                f"§told({local})",
            )
        if kind == "NOT_NONE_MATCH":
            return Check(f"{local} is not None", f"{local} was not None", "None")
        if kind == "CLOSURE_MATCH" and hasattr(value, "__code__"):
            code = self._keep("code", guard.path, value.__code__)
            return Check(
                f"getattr({local}, '__code__', None) == {code}", f"{local} was {value!r}", f"§told({local})"
            )
        if kind in BY_IDENTITY or kind == "CLOSURE_MATCH":
            kept = self._keep("value", guard.path, value)
            return Check(f"{local} is {kept}", f"{local} was another object", f"§told({local})")
        if kind in _BY_TYPE:
            return Check(
                self._type_is(guard.path, local, value),
                f"{local} was a {type(value).__name__}",
                f"type({local}).__name__",
            )
        return None

    def _where_there_is_one(self, path: str, check: Check) -> Check:
        """``check`` of what a mapping has under a key, for calls whose mapping has none."""
        match = _ITEM.fullmatch(path)
        if match is None or not isinstance(self._value(match["mapping"]), Mapping):
            return check
        there = f"{match['key']!r} in {self._local(match['mapping'])}"
        return Check(
            f"{there} and {check.expression}", check.text, f"({check.got}) if {there} else 'nothing'"
        )

    def _same_tensor(self, guard: InputGuard) -> Check | None:
        if not (guard.path.startswith("L['") and guard.about.startswith("L['")):
            return None
        one, other = self._local(guard.path), self._local(guard.about)
        return Check(f"{one} is {other}", f"{one} and {other} were one tensor", "'two'")

    def _constant(self, path: str, local: str, value: Any) -> Check:
        text = f"{local} was {told(value)}"
        if value is None or isinstance(value, bool):
            return Check(f"{local} is {value}", text, f"§told({local})")
        same_type = self._type_is(path, local, value)
        if isinstance(value, float) and value != value:  # noqa: PLR0124 - not a number
            return Check(f"{same_type} and {local} != {local}", text, f"§told({local})")
        kept = self._keep("value", path, value if isinstance(value, _CONSTANTS) else copy.copy(value))
        return Check(f"{same_type} and {local} == {kept}", text, f"§told({local})")

    def _tensor(self, path: str, local: str, tensor: torch.Tensor) -> Check:
        parts = [
            f"isinstance({local}, §Tensor)",
            f"{local}.dtype is {self._keep('dtype', str(tensor.dtype), tensor.dtype)}",
            f"{local}.device == {self._keep('device', str(tensor.device), tensor.device)}",
            f"{local}.dim() == {tensor.dim()}",
        ]
        if torch.is_grad_enabled():
            parts.append(f"{local}.requires_grad is {tensor.requires_grad}")
        spec = self._specs.get(path)
        described = f"{local} was {tensor.dtype}, {tensor.dim()}-d"
        if isinstance(spec, TensorSpec):
            sizes: Sequence[Dim] = spec.size
            described += f", shape ({_listed(spec.size)}), strides ({_listed(spec.stride)})"
        else:  # read for its sizes alone, or of a kind that has no description
            sizes = [
                "any" if f"{path}.size()[{dim}]" in self._dynamic else size
                for dim, size in enumerate(tensor.shape)
            ]
            described += f", shape ({_listed(sizes)})"
        parts += [f"{local}.size({dim}) == {size}" for dim, size in enumerate(sizes) if isinstance(size, int)]
        if isinstance(spec, TensorSpec):
            parts += self._layout(local, tensor, spec)
        described += f", requires_grad={tensor.requires_grad}, {tensor.device}"
        return Check(" and ".join(parts), described, f"§show({local})")

    def _layout(self, local: str, tensor: torch.Tensor, spec: TensorSpec) -> list[str]:
        if tensor.is_contiguous():
            return [f"{local}.is_contiguous()"]
        parts = []
        own = {size: f"{local}.size({dim})" for dim, size in enumerate(spec.size) if isinstance(size, str)}
        for dim, (size, stride) in enumerate(zip(spec.size, spec.stride, strict=True)):
            wanted = str(stride) if isinstance(stride, int) else self._written(stride, own)
            if wanted is None or size == 1 or wanted == f"{local}.stride()[{dim}]":
                continue
            same = f"{local}.stride({dim}) == {wanted}"
            # A dim of size 1 is never stepped along.
            parts.append(same if isinstance(size, int) else f"({local}.size({dim}) == 1 or {same})")
        return parts

    def _written(self, text: str, own: Mapping[str, str]) -> str | None:
        """``text`` over symbols as Python over the arguments; None where it is no plain arithmetic."""
        readers = {**self._readers, **own}
        names = set(re.findall(r"[A-Za-z_]\w*", text))
        if not names <= readers.keys():
            return None
        return re.sub(r"[A-Za-z_]\w*", lambda match: readers[match[0]], text)

    # -- names

    def _is_argument(self, source: str) -> bool:
        inner = source.removeprefix("___from_numpy(")
        return inner.startswith("L['") and not inner.startswith(self._owner)

    def _is_closed_over(self, *paths: str) -> bool:
        """Whether one of the paths begins with a variable that the traced function closes over."""
        first = (_LOCAL.search(path) for path in paths)
        return any(match is not None and match["name"] in self._closed_over for match in first)

    def _local(self, path: str) -> str:
        return re.sub(r"L\['(\w+)'\]", r"\1", path.replace(self._owner, "§owner"))

    def _value(self, path: str) -> Any:
        try:
            scope = {"L": self._frame, "G": self._raw.traced.__globals__, "___from_numpy": from_numpy}
            return eval(path, scope)
        except Exception:  # noqa: BLE001 - a path of Dynamo's own (iterators) that is no plain expression
            return _ABSENT

    def _type_is(self, path: str, local: str, value: Any) -> str:
        return f"type({local}) is {self._keep('type', path, type(value))}"

    def _keep(self, prefix: str, path: str, value: Any) -> str:
        """Keep ``value`` under a name for the checks, which no other path's value has."""
        name = f"§{prefix}_{re.sub(r'[^0-9A-Za-z]+', '_', path)}_{zlib.crc32(path.encode()):x}"
        self.values[name] = value
        return name


def _unchanged(expression: str, label: str, shown: str, value: Any) -> Check:
    """``expression`` gives what it gave in the trace: ``value``, which is kept as ``label``."""
    return Check(
        f"type({expression}) is type({label}) and {expression} == {label}",
        f"{shown} was {value!r} in the trace",
        expression,
    )


def _listed(dims: Iterable[Dim]) -> str:
    return ", ".join(map(str, dims))
