"""How results on fixed memory reach the caller without being overwritten behind his back.

The default copies them, which costs one small kernel for each result. The other policies hand out the
graph's own memory: :attr:`OutputPolicy.REFUSE` makes the next replay an error as long as the caller holds
any of it, and :attr:`OutputPolicy.BORROW` is for results that only feed the next piece of the same call.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from torch_piecewise.cudagraphs.base import Value
from torch_piecewise.cudagraphs.extents import Extent
from torch_piecewise.errors import StaticGraphError
from torch_piecewise.torch_private.cudagraphs import flatten, storage_references, unflatten


class OutputPolicy(enum.Enum):
    """What a caller gets from a replay, and how long it is good for."""

    COPY = "copy"
    """Copies, good for ever."""

    REFUSE = "refuse"
    """The graph's own memory; the next replay of the same graph raises while any of it is held."""

    BORROW = "borrow"
    """The graph's own memory, good until the next replay. Asked for by whoever knows that that is enough."""


class StaticOutputs:
    """The results of one captured call, and how to hand them out.

    Args:
        tree: what the captured call returned, on fixed memory.
        policy: see :class:`OutputPolicy`.
        lasting: memory (storage addresses) of inputs that belong to the caller: results that lie there are
            handed out as they are, as in an eager call.
        captured_size: the padded size; None where calls have no size.
        extents: what to cut back to the size of the call, by position among the results' leaves: dims of a
            tensor; for a number that follows the size, one extent, whose dim does not matter.

    Raises:
        StaticGraphError: a result is something that might hide tensors from the copy, or calls have sizes
            and a number is not declared.
    """

    def __init__(
        self,
        tree: Value,
        policy: OutputPolicy,
        lasting: frozenset[int] = frozenset(),
        captured_size: int | None = None,
        extents: Mapping[int, Sequence[Extent]] | None = None,
    ) -> None:
        self._leaves, spec = flatten(tree)
        self._rebuild = _rebuilder(tree, lambda leaves: unflatten(leaves, spec))
        self._policy = policy
        self._captured_size = captured_size
        self._extents = extents or {}
        self._own = [
            position
            for position, leaf in enumerate(self._leaves)
            if isinstance(leaf, torch.Tensor)
            and leaf.numel()
            and leaf.untyped_storage().data_ptr() not in lasting
        ]
        self._views: dict[int | None, list[tuple[int, torch.Tensor]]] = {}
        self._lent: list[tuple[torch.UntypedStorage, int]] = []
        self._numbers = [
            (position, extents[0])
            for position, extents in self._extents.items()
            if extents and position < len(self._leaves) and isinstance(self._leaves[position], int)
        ]
        if policy is not OutputPolicy.BORROW:
            _refuse_hiding_places(self._leaves)
        if captured_size is not None:
            _refuse_undeclared_numbers(self._leaves, self._extents)

    def refuse_if_held(self) -> None:
        """Check that nobody holds memory that is about to be overwritten.

        Raises:
            StaticGraphError: the policy is REFUSE and a result of the last call is still held.
        """
        for storage, references in self._lent:
            if storage_references(storage) > references:
                raise StaticGraphError(
                    "A static graph was to be replayed while results of its last call are still held",
                    expected="results of one call are dropped or copied before the next call",
                    hint="call .clone() on what is to be kept, or set cudagraph_outputs='copy'",
                )
        self._lent.clear()

    def hand_out(self, size: int | None = None) -> Value:
        """The results of the replay just done, for a call of ``size`` (None: nothing to cut back)."""
        views = self._views.get(size)
        if views is None:
            views = self._views[size] = [(at, self._cut_back(at, size)) for at in self._own]
        leaves = list(self._leaves)
        if size is not None:
            for position, extent in self._numbers:
                leaves[position] = extent.of(size)
        if self._policy is OutputPolicy.COPY:
            for position, view in views:
                leaves[position] = view.clone()
        elif self._policy is OutputPolicy.BORROW:
            for position, view in views:
                leaves[position] = view
        else:
            self._lend(leaves, views)
        return self._rebuild(leaves)

    def _lend(self, leaves: list[Any], views: list[tuple[int, torch.Tensor]]) -> None:
        storages = [view.untyped_storage() for _, view in views]
        self._lent = [(storage, storage_references(storage)) for storage in storages]
        for position, view in views:
            leaves[position] = view.detach()

    def _cut_back(self, position: int, size: int | None) -> torch.Tensor:
        tensor: torch.Tensor = self._leaves[position]
        if size is not None and size != self._captured_size:
            for extent in self._extents.get(position, ()):
                tensor = tensor.narrow(extent.dim, 0, extent.of(size))
        return tensor


def _rebuilder(tree: Value, general: Callable[[Sequence[Any]], Any]) -> Callable[[list[Any]], Any]:
    """Puts leaves back into ``tree``'s containers; quick for the two shapes that compiled code returns."""
    if isinstance(tree, torch.Tensor):
        return lambda leaves: leaves[0]
    if type(tree) is tuple and not any(isinstance(item, tuple | list | dict) for item in tree):
        leaves, _ = flatten(tree)
        if len(leaves) == len(tree):
            return tuple
    return general


def _refuse_hiding_places(leaves: Sequence[Any]) -> None:
    plain = (torch.Tensor, int, float, complex, bool, str, bytes, enum.Enum, torch.dtype, torch.device)
    for leaf in leaves:
        if leaf is not None and not isinstance(leaf, plain):
            raise StaticGraphError(
                "A captured call returned an object that may hold tensors on the graph's memory",
                expected="tensors, numbers, text and None, in tuples, lists, dicts or registered containers",
                got=type(leaf).__name__,
                hint="return its tensors, or register the class with torch's pytree",
            )


def _refuse_undeclared_numbers(leaves: Sequence[Any], extents: Mapping[int, Sequence[Extent]]) -> None:
    for position, leaf in enumerate(leaves):
        if isinstance(leaf, int | float) and not isinstance(leaf, bool) and position not in extents:
            raise StaticGraphError(
                f"Output {position} of a captured call is a number, which may follow the size of the call",
                expected="numbers among the outputs are declared",
                got=repr(leaf),
                hint=f"declare outputs[{position}]: an Extent if it follows the size, () if it does not",
            )
