"""Do the arguments of a replay lie where the captured ones lay?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch_piecewise.cudagraphs.base import Value
from torch_piecewise.errors import StaticGraphError


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor lies and how it reads that memory."""

    address: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorPlace:
        """Where ``tensor`` lies now."""
        return cls(tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.size)}, strides {list(self.stride)}, at address {self.address:#x}"


class AddressBook:
    """The arguments of a captured call: places of tensors, values of everything else."""

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._captured = dict(_entries(args, kwargs))

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Compare a call's arguments, positional and keyword, however nested, with the captured ones.

        Raises:
            StaticGraphError: names the first argument that lies elsewhere, has another value, is missing
                or was not there at capture.
        """
        now = dict(_entries(args, kwargs))
        for path in [*self._captured, *(path for path in now if path not in self._captured)]:
            captured, got = self._captured.get(path, _ABSENT), now.get(path, _ABSENT)
            if captured != got:
                raise StaticGraphError(
                    f"{path} of a replay is not the one that was captured",
                    expected=str(captured),
                    got=str(got),
                    hint="copy the new value into the captured tensor, or let make_copy_and_call do it",
                )


_ABSENT = "no such argument"


def _entries(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for position, value in enumerate(args):
        yield from _walk(f"args[{position}]", value)
    for name in sorted(kwargs):
        yield from _walk(name, kwargs[name])


def _walk(path: str, value: Value) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Tensor):
        yield path, TensorPlace.of(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(f"{path}[{key!r}]", item)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _walk(f"{path}[{position}]", item)
    elif value is None or isinstance(value, int | float | bool | str | bytes):
        yield path, value
    else:
        # An object's own idea of equality may compare tensors; what counts here is that it is the same one.
        yield path, f"{type(value).__name__} object {id(value):#x}"
