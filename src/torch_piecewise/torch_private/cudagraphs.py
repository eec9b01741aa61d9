"""Private torch names that static graphs need, one small function each.

Every name here exists in torch 2.11 and 2.13; a comment says what it is needed for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

# The type of an operator as a mode sees it; torch.ops gives instances only. 2.11, 2.13.
from torch._ops import OpOverload as OpOverload

# The type of torch.cuda.graph_pool_handle()'s result. 2.11, 2.13.
from torch.cuda import _POOL_HANDLE

# Says whether memory still exists. In a public module, but in no documentation. 2.11, 2.13.
from torch.multiprocessing.reductions import StorageWeakRef

# A mode sees every operation below autograd; there is no public name for it. 2.11, 2.13.
from torch.utils._python_dispatch import TorchDispatchMode

# torch's own flattening knows the containers that other libraries registered (model outputs); there is no
# public name for it. 2.11, 2.13.
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

PoolHandle = _POOL_HANDLE
"""What ``torch.cuda.graph_pool_handle()`` gives."""

Value = Any
"""Whatever an operator takes or returns."""


class MemoryWatch:
    """Tells whether memory still exists, without keeping it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]

    def is_gone(self) -> bool:
        """Whether the last tensor on that memory is gone."""
        return bool(self._reference.expired())  # type: ignore[no-untyped-call]


class OperatorMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator call of this thread while entered, in :meth:`run`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: OpOverload, types: Value, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Value:
        return self.run(func, args, kwargs or {})

    def run(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Called instead of ``op``; the mode is not in force meanwhile."""
        return op(*args, **kwargs)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Leave the mode for a block; it must be the innermost one."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            self.__enter__()  # type: ignore[no-untyped-call]


def flatten(tree: object) -> tuple[list[Any], TreeSpec]:
    """Leaves of nested containers in order, and what :func:`unflatten` needs."""
    leaves, spec = tree_flatten(tree)
    return leaves, spec


def unflatten(leaves: Sequence[Any], spec: TreeSpec) -> Value:
    """The containers of ``spec`` around ``leaves``."""
    return tree_unflatten(leaves, spec)


def tensor_at(address: int, like: torch.Tensor, size: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    """A tensor over memory it does not own; dtype and device of ``like``.

    The constructor of a storage from an address is what torch's own graph trees use for the same purpose;
    ``__cuda_array_interface__`` would be public but needs numpy. 2.11, 2.13.
    """
    extent = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    storage = torch._C._construct_storage_from_data_pointer(
        address, like.device, extent * like.element_size()
    )
    with torch.inference_mode(False), torch.no_grad():
        empty = torch.empty(0, dtype=like.dtype, device=like.device)
        return empty.set_(storage, 0, tuple(size), tuple(stride))


def storage_references(storage: torch.UntypedStorage) -> int:
    """How many tensors (and Python storages) hold this memory now. 2.11, 2.13."""
    return int(torch._C._storage_Use_Count(storage._cdata))


def written_tensors(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensor arguments that ``op`` declares to write. The schema has no public name. 2.11, 2.13."""
    written: list[torch.Tensor] = []
    for position, argument in enumerate(op._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        written += [leaf for leaf in flatten(value)[0] if isinstance(leaf, torch.Tensor)]
    return written


def run_cpu_kernel(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Value:
    """Run ``op``'s CPU kernel at once, so that an active mode sees what the kernel calls but not ``op``.

    ``redispatch`` is how torch itself skips the keys above a kernel. 2.11, 2.13.
    """
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return op.redispatch(keys, *args, **kwargs)


def end_allocation_to_pool(device: int, pool: tuple[int, int]) -> None:
    """Tell the CUDA allocator that a capture which failed to end is over.

    ``CUDAGraph.capture_end`` leaves this out when the driver refuses to end a capture (pytorch issue
    188439), and every later capture in the same pool is then refused. Does nothing where torch has
    already done it. 2.11, 2.13.
    """
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device, pool)
