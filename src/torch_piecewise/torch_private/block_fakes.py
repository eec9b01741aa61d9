"""Fake values of a copied block without running its operations again.

The first trace ran them; a copy has the same sizes, strides and sharing of memory, in memory of its own.
``FakeTensor`` and its modes are private in all versions (2.11, 2.13).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager
from torch.nn import Module, Parameter
from torch.utils._mode_utils import no_dispatch


def can_copy(made: Iterable[Any], used: Iterable[Any]) -> bool:
    """Whether what a block computes is of the plain kinds whose copies are exact.

    Args:
        made: example values of its operations.
        used: those of the tensors that came to it.
    """
    return all(map(_is_plain, used)) and all(_is_plain(one) and not _differentiable(one) for one in made)


def _differentiable(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_differentiable, value))
    return isinstance(value, torch.Tensor) and value.requires_grad


def _is_plain(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return (
            type(value) is FakeTensor
            and value.layout is torch.strided
            and value.constant is None
            and not _is_special(value)
        )
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.SymInt | torch.dtype)


def _is_special(tensor: torch.Tensor) -> bool:
    return tensor.is_conj() or tensor.is_neg() or tensor.is_inference() or tensor.is_quantized


class FakeCopies:
    """Makes fake values like those of a traced call, sharing memory among themselves as those do.

    Args:
        mode: the trace's fake mode.
        inputs: for each value that the traced call used, the one that the copied call uses.
    """

    def __init__(self, mode: Any, inputs: Iterable[tuple[Any, Any]]) -> None:
        self._mode = mode
        self._made: dict[int, Any] = {}
        # What a view of the same memory is made from.
        self._memory: dict[int, torch.Tensor] = {}
        self._keep: list[Any] = []
        for old, new in inputs:
            if isinstance(old, torch.Tensor):
                self._made[id(old)] = new
                self._memory.setdefault(_memory_of(old), new)
                self._keep.append(old)

    def of(self, old: Any) -> Any:
        """The copy's value in the place of ``old``."""
        if isinstance(old, torch.Tensor):
            made = self._made.get(id(old))
            if made is None:
                made = self._made[id(old)] = self._tensor(old)
                self._keep.append(old)
            return made
        if isinstance(old, torch.Size) or not isinstance(old, tuple | list):
            return old
        items = [self.of(item) for item in old]
        return type(old)(*items) if hasattr(old, "_fields") else type(old)(items)

    def whole(self, old: torch.Tensor) -> torch.Tensor:
        """As :meth:`of`, for a value that later code computes with: in memory of its true size."""
        key = _memory_of(old)
        if id(old) in self._made or key in self._memory:
            made: torch.Tensor = self.of(old)
            return made
        with self._mode:
            made = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=old.device)
        self._memory[key] = self._made[id(old)] = made
        self._keep.append(old)
        return made

    def _tensor(self, old: torch.Tensor) -> torch.Tensor:
        key = _memory_of(old)
        # Only views look at how large a memory is, and these are made already.
        base = self._memory.setdefault(key, torch.empty(0, dtype=old.dtype, device="meta"))
        with torch.no_grad(), in_kernel_invocation_manager(self._mode):
            view = base.as_strided(old.shape, old.stride(), old.storage_offset())
            if view.dtype != old.dtype:
                view = view.view(old.dtype)
        return FakeTensor(self._mode, view, old.device)


class FakeParameters:
    """Gives a trace the fakes of parameters that are laid out like others it has seen.

    Making one from the parameter itself takes torch a millisecond, most of it to find out that no size is
    dynamic (``FakeTensorConverter``; 2.11, 2.13). Parameters that share memory, were marked for Dynamo or
    are in any way special are left to torch.

    Args:
        modules: what the traced model consists of.
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        tables = [table for module in modules for table in (module._parameters, module._buffers)]
        tensors = {id(one): one for table in tables for one in table.values() if one is not None}
        plain = [
            one
            for one in tensors.values()
            if one.layout is torch.strided and type(one) in (torch.Tensor, Parameter)
        ]
        shared = Counter(map(_memory_of, plain))
        self._alone = {id(one) for one in plain if shared[_memory_of(one)] == 1}

    def offer(self, mode: Any, real: Any, like: Any) -> FakeTensor | None:
        """Let ``mode`` take a copy of ``like``, a fake of its own, for ``real`` where that is exact.

        Returns:
            That copy, to be held until it is in use: ``mode`` remembers it weakly.
        """
        if id(real) not in self._alone or not _is_ordinary(real) or not _is_plain(like):
            return None
        same = (real.shape, real.stride(), real.dtype, real.device, real.requires_grad)
        if same != (like.shape, like.stride(), like.dtype, like.device, like.requires_grad):
            return None
        with no_dispatch():
            layout = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="meta")
            fake = FakeTensor(mode, layout.requires_grad_(real.requires_grad), real.device)
        fake._is_param = True
        mode.fake_tensor_converter.set_tensor_memo(real, fake)
        return fake


def _is_ordinary(real: torch.Tensor) -> bool:
    marks = {name for name in vars(real) if name.startswith("_dynamo")}
    return (
        type(real) is Parameter
        and real.dim() > 0
        and real.is_leaf
        and not real._is_view()
        and not _is_special(real)
        and real.storage_offset() == 0
        and real.untyped_storage().nbytes() == real.numel() * real.element_size()
        and real.grad is None
        and getattr(real, "grad_dtype", None) in (None, real.dtype)
        and marks <= {"_dynamo_static_input_type"}
    )


def _memory_of(value: torch.Tensor) -> int:
    return int(value.untyped_storage()._cdata)


__all__ = ["FakeCopies", "FakeParameters", "can_copy"]
