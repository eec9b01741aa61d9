"""The parameters, buffers and submodules that a program reads, and how a replaced one is noticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import is_
from typing import Any

import torch

from torch_piecewise.piece import TensorSpec
from torch_piecewise.torch_private.layouts import layout_check
from torch_piecewise.torch_private.modules import hook_tables


@dataclass(frozen=True)
class StateInput:
    """A tensor that is no argument: where it lives, and what the trace relied on.

    Attributes:
        path: for people; of a parameter or buffer the dotted name from the root module (``layers.0.weight``).
        holder: the dict that a parameter or buffer is read from on each call; None for any other tensor.
        key: its name in ``holder``; where there is none, the expression that reads it.
        spec: sizes, strides, dtype and device the pieces were compiled for.
    """

    path: str
    holder: Mapping[str, Any] | None = field(repr=False)
    key: str
    spec: TensorSpec | None


class State:
    """The tensors and submodules a program reads beside its arguments; notices when one is replaced.

    Attributes:
        on_other_memory: called when a tensor was replaced or moved, before the call that brought it runs:
            with all tensors, in the order of ``inputs``, and the path of that one.

    Args:
        inputs: tensors that are graph inputs and no arguments.
        children: ``(path, _modules dict, name)`` of every submodule on the way to them.
        modules: every module whose hooks the trace saw.
    """

    def __init__(
        self,
        inputs: Sequence[StateInput],
        children: Sequence[tuple[str, dict[str, Any], str]],
        modules: Sequence[torch.nn.Module],
    ) -> None:
        self.inputs = tuple(inputs)
        self._children = tuple((path, holder, name, holder[name]) for path, holder, name in children)
        holders = {id(holder): holder for _path, holder, _name in children}
        self._holders = list(holders.values())
        self._traced_holders = [dict(holder) for holder in self._holders]
        # Equal dicts hold the same modules, unless a module says that it equals another.
        kinds = {type(child) for holder in self._holders for child in holder.values()}
        plain = all(vars(base).get("__eq__") is None for kind in kinds for base in kind.__mro__[:-1])
        self._child_ids = None if plain else self._ids_of_children()
        hooks = [one for module in modules for one in hook_tables(module)]
        self._no_hooks = tuple(table for table in hooks if not table)
        self._hooks = tuple((table, list(table)) for table in hooks if table)
        self.on_other_memory: Callable[[Sequence[Any], str], object] = lambda _tensors, _path: None
        self.accept([entry.holder[entry.key] for entry in self.inputs if entry.holder is not None])

    def accept(self, tensors: Sequence[torch.Tensor]) -> None:
        """Remember ``tensors`` as the ones that were checked."""
        self._known = tuple(tensors)
        self._pointers = list(map(torch.Tensor.data_ptr, tensors))
        self._layout_unchanged = layout_check(tensors)

    def is_known(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether ``tensors`` are the ones checked before, not swapped or reshaped in place."""
        return self._in_same_memory(tensors) and self._layout_unchanged(*tensors)

    def _in_same_memory(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether they are the same objects with the same storages (``.data`` not swapped)."""
        return (
            all(map(is_, tensors, self._known))
            and list(map(torch.Tensor.data_ptr, tensors)) == self._pointers
        )

    def difference(self, tensors: Sequence[torch.Tensor]) -> str | None:
        """What no longer fits, for people; None, and ``tensors`` accepted, where everything does."""
        if not self._in_same_memory(tensors):
            self.on_other_memory(tensors, self._first_elsewhere(tensors))
        for entry, tensor in zip(self.inputs, tensors, strict=True):
            wrong = _tensor_difference(tensor, entry.spec)
            if wrong is not None:
                return f"{entry.path}: {wrong}"
        self.accept(tensors)
        return None

    def _first_elsewhere(self, tensors: Sequence[Any]) -> str:
        known = zip(self.inputs, tensors, self._known, self._pointers, strict=False)
        return next(
            (one.path for one, now, was, place in known if now is not was or now.data_ptr() != place),
            "a tensor of the model",
        )

    def look_again(self) -> bool:
        """Look at the tensors that modules hold as the next call will; whether they fit."""
        if len(self._known) != len(self.inputs):
            return True  # no call has come yet
        now: list[Any] = [
            known if entry.holder is None else entry.holder.get(entry.key)
            for entry, known in zip(self.inputs, self._known, strict=True)
        ]
        return all(isinstance(one, torch.Tensor) for one in now) and (
            self.is_known(now) or self.difference(now) is None
        )

    def replaced_child(self) -> str | None:
        """Path of the first submodule that is no longer the traced one."""
        for path, holder, name, child in self._children:
            if holder.get(name) is not child:
                return path
        return None

    def children_unchanged(self) -> bool:
        """Whether every submodule on the way to an input is the traced one, and none beside it is new."""
        if self._child_ids is None:
            return self._holders == self._traced_holders  # a loop in C: it runs on every call
        return self._ids_of_children() == self._child_ids

    def hooks_unchanged(self) -> bool:
        """Whether no module gained or lost a hook."""
        return not any(self._no_hooks) and all(list(table) == keys for table, keys in self._hooks)

    def _ids_of_children(self) -> list[int]:
        return list(map(id, chain.from_iterable(map(dict.values, self._holders))))


def _tensor_difference(tensor: Any, spec: TensorSpec | None) -> str | None:
    if not isinstance(tensor, torch.Tensor):
        return f"expected a tensor, got {type(tensor).__name__}"
    if spec is None:
        return None
    expected = (spec.dtype, spec.device, spec.size, spec.stride, spec.requires_grad)
    got = (tensor.dtype, tensor.device, tuple(tensor.shape), tuple(tensor.stride()), tensor.requires_grad)
    names = ("dtype", "device", "shape", "strides", "requires_grad")
    for name, want, have in zip(names, expected, got, strict=True):
        symbolic = isinstance(want, tuple) and any(isinstance(dim, str) for dim in want)
        if not symbolic and want != have:
            return f"{name} was {want}, is {have}"
    return None
