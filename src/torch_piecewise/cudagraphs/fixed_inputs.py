"""The arguments of a captured call: what stays, what is copied in, and where to."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch_piecewise.cudagraphs.addresses import TensorPlace
from torch_piecewise.cudagraphs.base import Value
from torch_piecewise.cudagraphs.copy_inputs import (
    GrowingBuffer,
    dense_stride,
    inner_dims_first,
    plain_tensors,
)
from torch_piecewise.cudagraphs.extents import DynamicInput, Extent
from torch_piecewise.errors import ConfigError


@dataclass(frozen=True)
class _Changing:
    """A dynamic input, up to its size: ``shape`` counts only where no extent says otherwise."""

    position: int
    declared: DynamicInput
    shape: tuple[int, ...]
    inner_first: tuple[int, ...]
    like: torch.Tensor

    def shape_at(self, size: int) -> tuple[int, ...]:
        shape = list(self.shape)
        for extent in self.declared.extents:
            shape[extent.dim] = extent.of(size)
        return tuple(shape)


class CallTemplate:
    """Everything about a call's arguments except its size and the values of dynamic inputs.

    Args:
        args: arguments of some call, of any size.
        dynamic: the inputs that change from call to call, by position; all others stay.
        numbers: numbers among the inputs that follow the size of the call, by position.
        names: what people call inputs, by position.

    Attributes:
        refusal: why nothing can be captured for such arguments; empty where it can.

    Raises:
        ConfigError: a dynamic input is no tensor, or lacks a dim it was declared with.
    """

    def __init__(
        self,
        args: Sequence[Any],
        dynamic: Mapping[int, DynamicInput],
        numbers: Mapping[int, Extent] | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self.numbers = numbers or {}
        self._names = names or {}
        self.changing = [_changing(args, at, declared) for at, declared in sorted(dynamic.items())]
        self.lasting = [
            (at, value) for at, value in enumerate(args) if at not in dynamic and at not in self.numbers
        ]
        gaps = [changing.position for changing in self.changing if _has_gaps(args[changing.position])]
        self.refusal = f"{self.name(gaps[0])} has gaps in memory: give it .contiguous()" if gaps else ""

    def name(self, position: int) -> str:
        """What people call an input."""
        return self._names.get(position, f"input {position}")

    def renewed(self, current: Mapping[int, torch.Tensor]) -> CallTemplate:
        """The same call with other tensors among those that stay."""
        made = copy.copy(self)
        made.lasting = [(at, current.get(at, value)) for at, value in self.lasting]
        return made

    def in_place(self, dynamic: Mapping[int, DynamicInput], size: int) -> CallTemplate:
        """What a call of another size looks like whose inputs begin where those of this call do.

        Args:
            dynamic: the inputs that follow the size and are not copied, by position.
        """
        made = copy.copy(self)
        made.lasting = [
            (at, _resized(value, dynamic[at].extents, size) if at in dynamic else value)
            for at, value in self.lasting
        ]
        short = [at for at, value in made.lasting if value is None and at in dynamic]
        made.refusal = made.refusal or (
            f"the memory of {self.name(short[0])} has no room for size {size}" if short else ""
        )
        return made


class InputMemory:
    """One growing buffer for each dynamic input, shared by all captured sizes."""

    def __init__(self) -> None:
        self._buffers: dict[int, GrowingBuffer] = {}

    def reserve(self, template: CallTemplate, size: int) -> bool:
        """Make room for calls of ``size``; returns whether a buffer that was in use has been replaced."""
        replaced = False
        for changing in template.changing:
            buffer = self._buffers.setdefault(changing.position, GrowingBuffer())
            replaced |= buffer.reserve(changing.shape_at(size), changing.like)
        return replaced

    def place(self, changing: _Changing, size: int) -> torch.Tensor:
        """Where the input lies in calls of ``size``; room has been reserved."""
        shape = changing.shape_at(size)
        return self._buffers[changing.position].view(shape, dense_stride(changing.inner_first, shape))


class FixedInputs:
    """The arguments that one captured size works on.

    Attributes:
        args: what the captured code is called with: lasting arguments as they are, dynamic ones in place.
    """

    def __init__(
        self,
        template: CallTemplate,
        memory: InputMemory,
        size: int,
        *,
        check_addresses: bool,
        always_check: frozenset[int] = frozenset(),
    ) -> None:
        self.template = template
        self._lasting = template.lasting
        self._pick = _picker([at for at, _ in template.lasting])
        self._lasting_values = tuple(value for _, value in template.lasting)
        self._addresses = [
            (at, TensorPlace.of(value))
            for at, value in template.lasting
            if isinstance(value, torch.Tensor) and (check_addresses or at in always_check)
        ]
        self._inputs = [(changing, memory.place(changing, size)) for changing in template.changing]
        self._bound: dict[int, BoundInputs] = {}
        args: list[Any] = [None] * (len(self._lasting) + len(self._inputs) + len(template.numbers))
        for at, value in self._lasting:
            args[at] = value
        for at, extent in template.numbers.items():
            args[at] = extent.of(size)
        for changing, place in self._inputs:
            args[changing.position] = place
        self.args = tuple(args)

    def lasting_memory(self) -> frozenset[int]:
        """Storage addresses of the tensors that stay the caller's."""
        tensors = [value for value in self._lasting_values if isinstance(value, torch.Tensor)]
        return frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)

    def refusal(self, args: Sequence[Any]) -> str:
        """Why these arguments cannot be served, whatever their size; empty where they can."""
        if len(args) != len(self.args):
            return "another number of inputs"
        # Nearly always the very same objects, so that is asked first, in one go.
        if not all(map(operator.is_, self._pick(args), self._lasting_values)):
            for at, value in self._lasting:
                if args[at] is not value and not _is_same(args[at], value):
                    return _other(self.template.name(at), args[at], value)
        for at, place in self._addresses:
            if TensorPlace.of(args[at]) != place:
                return f"{self.template.name(at)} has moved"
        return ""

    def moved(self, args: Sequence[Any]) -> frozenset[int]:
        """Positions of tensors among refused arguments that lie in other memory than the captured ones."""
        if len(args) != len(self.args):
            return frozenset()
        captured = dict(self._addresses)
        return frozenset(
            at
            for at, value in self._lasting
            if isinstance(value, torch.Tensor)
            and isinstance(args[at], torch.Tensor)
            and TensorPlace.of(args[at]) != (captured.get(at) or TensorPlace.of(value))
        )

    def bound(self, size: int) -> BoundInputs:
        """Where the dynamic inputs of calls of ``size`` go."""
        found = self._bound.get(size)
        if found is None:
            with plain_tensors():
                bindings = [_bind(changing, place, size) for changing, place in self._inputs]
                found = BoundInputs(bindings, self.template.name)
            self._bound[size] = found
        return found

    def fill_with_padding(self) -> None:
        """Fill all dynamic inputs with their padding, for a call that only warms up."""
        for changing, place in self._inputs:
            if changing.declared.pad_value is not None:
                place.fill_(changing.declared.pad_value)


@dataclass(frozen=True, slots=True)
class _Binding:
    """Where one input of a call of a certain size goes."""

    position: int
    place: torch.Tensor
    tails: tuple[torch.Tensor, ...]
    pad_value: float | int | bool
    copy_back: bool


class BoundInputs:
    """Copies the dynamic inputs of calls of one size, which may be smaller than the captured one."""

    def __init__(self, bindings: Sequence[_Binding], name: Callable[[int], str] = "input {}".format) -> None:
        self._name = name
        self._checks = [(b.position, b.place.shape, b.place.dtype, b.place.device) for b in bindings]
        self._copies = [(b.position, b.place) for b in bindings]
        self._pads = [(tail, b.pad_value) for b in bindings for tail in b.tails]
        self._backs = [(b.position, b.place) for b in bindings if b.copy_back]

    def refusal(self, args: Sequence[Any]) -> str:
        """Why these arguments cannot be copied in; empty where they can."""
        for position, shape, dtype, device in self._checks:
            given = args[position]
            if not isinstance(given, torch.Tensor) or given.shape != shape:
                return f"{self._name(position)} has another shape"
            if given.dtype is not dtype or given.device != device:
                return f"{self._name(position)} has another dtype or device"
        return ""

    def fill(self, args: Sequence[Any]) -> None:
        """Copy a call's dynamic inputs in, and pad what lies beyond its size."""
        for position, place in self._copies:
            place.copy_(args[position])
        for tail, pad_value in self._pads:
            tail.fill_(pad_value)

    def copy_back(self, args: Sequence[Any]) -> None:
        """Copy what the model wrote to its inputs to the caller's tensors."""
        for position, place in self._backs:
            args[position].copy_(place)


def _picker(positions: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    if len(positions) > 1:
        return operator.itemgetter(*positions)
    return lambda args: [args[at] for at in positions]


def _bind(changing: _Changing, whole: torch.Tensor, size: int) -> _Binding:
    place, tails = whole, []
    for extent in changing.declared.extents:
        length = extent.of(size)
        beyond = place.shape[extent.dim] - length
        if beyond > 0 and changing.declared.pad_value is not None:
            tails.append(place.narrow(extent.dim, length, beyond))
        place = place.narrow(extent.dim, 0, length)
    declared = changing.declared
    return _Binding(changing.position, place, tuple(tails), declared.pad_value or 0, declared.copy_back)


def _changing(args: Sequence[Any], position: int, declared: DynamicInput) -> _Changing:
    value = args[position] if position < len(args) else None
    if not isinstance(value, torch.Tensor):
        raise ConfigError(
            f"Input {position} is declared dynamic but is no tensor",
            expected="a tensor",
            got=type(value).__name__,
            hint="take it out of `inputs`: everything that is not listed there has to stay the same",
        )
    for extent in declared.extents:
        if not -value.dim() <= extent.dim < value.dim():
            raise ConfigError(
                f"Input {position} is declared dynamic in a dim it does not have",
                expected=f"a dim below {value.dim()}",
                got=str(extent.dim),
            )
    like = torch.empty(0, dtype=value.dtype, device=value.device)
    return _Changing(position, declared, tuple(value.shape), tuple(inner_dims_first(value)), like)


def _resized(value: torch.Tensor, extents: Sequence[Extent], size: int) -> torch.Tensor | None:
    """The tensor with the dims of another size, in the same memory; None where that has no room for it."""
    shape = list(value.shape)
    for extent in extents:
        shape[extent.dim] = extent.of(size)
    if tuple(shape) == tuple(value.shape):
        return value
    steps = sorted((step, length) for step, length in zip(value.stride(), shape, strict=True) if length > 1)
    overlaps = any(step < reach for (step, _), reach in zip(steps, _reaches(steps), strict=True))
    end = value.storage_offset() + 1 + sum((length - 1) * step for step, length in steps)
    if overlaps or end * value.element_size() > value.untyped_storage().nbytes():
        return None
    with plain_tensors():
        return value.detach().as_strided(shape, value.stride(), value.storage_offset())


def _reaches(steps: Sequence[tuple[int, int]]) -> list[int]:
    """For each dim, smallest stride first: how far the dims before it reach."""
    reaches = [1]
    for step, length in steps[:-1]:
        reaches.append(reaches[-1] + (length - 1) * step)
    return reaches[: len(steps)]


def _has_gaps(value: torch.Tensor) -> bool:
    if value.is_contiguous():
        return False
    dense = dense_stride(inner_dims_first(value), value.shape)
    steps = zip(value.shape, value.stride(), dense, strict=True)
    return any(size > 1 and step != close for size, step, close in steps)


def _other(name: str, given: Value, captured: Value) -> str:
    plain = (int, float, str, type(None))
    if isinstance(given, plain) and isinstance(captured, plain):
        return f"{name} is {given!r}, captured with {captured!r}"
    return f"{name} is not the captured one"


def _is_same(given: Value, captured: Value) -> bool:
    if isinstance(given, torch.Tensor) and isinstance(captured, torch.Tensor):
        return TensorPlace.of(given) == TensorPlace.of(captured)
    return type(given) is type(captured) and isinstance(given, int | float | str) and given == captured
