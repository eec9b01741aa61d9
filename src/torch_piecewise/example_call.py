"""What a call looked like, without its data: enough to trace such a call again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn import Parameter

from torch_piecewise.errors import ConfigError
from torch_piecewise.torch_private.cudagraphs import flatten, unflatten

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.memory_format)


@dataclass(frozen=True)
class _Layout:
    """A tensor, without its values; ``number`` tells tensors apart that were different objects."""

    number: int
    dtype: torch.dtype
    device: torch.device
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> torch.Tensor:
        extent = 1 + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        memory = torch.zeros(max(extent, 1), dtype=self.dtype, device=self.device)
        return memory.as_strided(self.size, self.stride)


@dataclass(frozen=True)
class _Unknown:
    """A value that cannot be made again; by its type."""

    kind: str


@dataclass(frozen=True)
class ExampleCall:
    """The arguments of one call: sizes and dtypes of tensors, and plain values. Holds no tensor.

    Make one with :meth:`of`.
    """

    leaves: tuple[Any, ...]
    structure: Any

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Self:
        """What such a call looks like."""
        leaves, structure = flatten((args, kwargs))
        numbers: dict[int, int] = {}
        return cls(tuple(_described(leaf, numbers) for leaf in leaves), structure)

    def make(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of such a call; tensors hold zeros.

        Raises:
            ConfigError: the call held something that cannot be made again.
        """
        made: dict[int, torch.Tensor] = {}
        values = []
        for leaf in self.leaves:
            if isinstance(leaf, _Unknown):
                raise ConfigError(
                    "The call that was traced cannot be made again",
                    expected="dense tensors and plain values, in tuples, lists and dicts",
                    got=f"an argument of type {leaf.kind}",
                    hint="give the arguments of one call: save(path, example_inputs=...)",
                )
            if isinstance(leaf, _Layout) and leaf.number not in made:
                made[leaf.number] = leaf.tensor()
            values.append(made[leaf.number] if isinstance(leaf, _Layout) else leaf)
        args, kwargs = unflatten(values, self.structure)
        return args, kwargs


def _described(leaf: Any, numbers: dict[int, int]) -> Any:
    is_dense = type(leaf) in (torch.Tensor, Parameter) and leaf.layout is torch.strided
    if is_dense and not leaf.is_quantized and not leaf.is_conj() and not leaf.is_neg():
        number = numbers.setdefault(id(leaf), len(numbers))
        return _Layout(number, leaf.dtype, leaf.device, tuple(leaf.shape), leaf.stride())
    return leaf if type(leaf) in _PLAIN else _Unknown(f"{type(leaf).__module__}.{type(leaf).__qualname__}")
