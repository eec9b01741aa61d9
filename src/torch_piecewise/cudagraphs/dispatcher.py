"""Which captured graph serves a batch."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import NamedTuple

from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs.descriptor import BatchDescriptor
from torch_piecewise.errors import ConfigError


class Dispatch(NamedTuple):
    """A decision: what :func:`forward_context` wants to know.

    Attributes:
        mode: ``FULL``, ``PIECEWISE`` or ``NONE``.
        descriptor: the captured batch that serves; for ``NONE``, the batch that was asked about.
    """

    mode: CUDAGraphMode
    descriptor: BatchDescriptor


class CUDAGraphDispatcher:
    """Knows every batch that is (to be) captured, and finds the one that serves a given batch.

    A batch is served by the smallest registered one that has room for its tokens, its requests and its
    adapters. FULL comes before PIECEWISE before NONE; a graph made for uniform batches comes before one
    made for any batch. Batches larger than all that are registered, and empty ones, are not served.

    Args:
        mode: the policy. Its mixed mode gets one key for each size, its decode mode (where that differs) one
            for each size that uniform batches can have.
        sizes: sizes to capture, > 0; order and duplicates do not matter.
        tokens_per_request: tokens that each request of a uniform batch has (more than 1 with drafted tokens).
        max_num_reqs: most requests of a uniform batch; None where nothing bounds it.
        lora_counts: numbers of active adapters to capture for, 0 among them for none; empty where the
            model has no adapters.

    Raises:
        ConfigError: a size, or another number, that cannot be.
    """

    def __init__(
        self,
        mode: CUDAGraphMode,
        sizes: Iterable[int] = (),
        *,
        tokens_per_request: int = 1,
        max_num_reqs: int | None = None,
        lora_counts: Iterable[int] = (),
    ) -> None:
        if not isinstance(mode, CUDAGraphMode):
            raise ConfigError(
                "A dispatcher is made for one policy",
                expected="a CUDAGraphMode, and the sizes to capture",
                got=repr(mode),
                hint="CUDAGraphDispatcher(config.cudagraph_mode, config.resolved_capture_sizes())",
            )
        if tokens_per_request < 1:
            raise ConfigError(
                "tokens_per_request is too small", expected="an integer >= 1", got=str(tokens_per_request)
            )
        self._mode = mode
        self._tokens_per_request = tokens_per_request
        self._max_num_reqs = max_num_reqs
        self._loras = [(count > 0, count) for count in sorted(set(lora_counts))] or [(False, 0)]
        self._keys: dict[CUDAGraphMode, set[BatchDescriptor]] = {
            CUDAGraphMode.FULL: set(),
            CUDAGraphMode.PIECEWISE: set(),
        }
        # (mode, uniform, has_lora) -> what is registered there, smallest first.
        self._ordered: dict[tuple[CUDAGraphMode, bool, bool], list[BatchDescriptor]] = {}
        for size in sizes:
            self.add_size(size)

    @property
    def policy(self) -> CUDAGraphMode:
        """The mode it was made for."""
        return self._mode

    def add_size(self, size: int) -> None:
        """Register what the policy captures for ``size``.

        Raises:
            ConfigError: ``size`` is no positive integer.
        """
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError("A capture size is no size", expected="an integer >= 1", got=repr(size))
        per_request, mixed = self._tokens_per_request, self._mode.mixed_mode()
        requests = size // per_request
        fits_uniform = size % per_request == 0 and requests <= (self._max_num_reqs or requests)
        for has_lora, loras in self._loras:
            if mixed:
                self.register(mixed, BatchDescriptor(size, None, False, has_lora, loras))
            if self._mode.separate_routine() and fits_uniform:
                uniform = BatchDescriptor(size, requests, True, has_lora, loras)
                self.register(self._mode.decode_mode(), uniform)

    def register(self, mode: CUDAGraphMode, descriptor: BatchDescriptor) -> None:
        """Let ``descriptor`` be served by a graph of its own in ``mode``.

        Raises:
            ConfigError: ``mode`` is neither FULL nor PIECEWISE.
        """
        if mode not in self._keys:
            raise ConfigError(
                "A batch can be captured as FULL or as PIECEWISE", expected="one of the two", got=str(mode)
            )
        if descriptor in self._keys[mode]:
            return
        self._keys[mode].add(descriptor)
        group = self._ordered.setdefault((mode, descriptor.uniform, descriptor.has_lora), [])
        bisect.insort(group, descriptor, key=_order)

    def unregister(self, mode: CUDAGraphMode, descriptor: BatchDescriptor) -> None:
        """Let ``descriptor`` not be served by its own graph any more; unknown ones are ignored."""
        if descriptor in self._keys.get(mode, ()):
            self._keys[mode].discard(descriptor)
            self._ordered[mode, descriptor.uniform, descriptor.has_lora].remove(descriptor)

    def dispatch(self, descriptor: BatchDescriptor | int, *, allow_full: bool = True) -> Dispatch:
        """What serves this batch.

        Args:
            descriptor: the batch as it is, not padded; a number is a batch of that many tokens of any kind.
            allow_full: False where the attention of this batch cannot be part of a graph.
        """
        if isinstance(descriptor, int):
            descriptor = BatchDescriptor(descriptor)
        modes = (CUDAGraphMode.FULL, CUDAGraphMode.PIECEWISE) if allow_full else (CUDAGraphMode.PIECEWISE,)
        for mode in modes:
            for uniform in (True, False) if descriptor.uniform else (False,):
                found = self._smallest(mode, uniform, descriptor)
                if found is not None:
                    return Dispatch(mode, found)
        return Dispatch(CUDAGraphMode.NONE, descriptor)

    def padded(self, num_tokens: int) -> int | None:
        """The size a batch of any kind is padded to; None where no graph serves it."""
        mode, descriptor = self.dispatch(num_tokens)
        return descriptor.num_tokens if mode else None

    def capture_order(self) -> list[Dispatch]:
        """Everything registered, largest first: smaller graphs then live in memory that is there already."""
        keys = [Dispatch(mode, descriptor) for mode, group in self._keys.items() for descriptor in group]
        return sorted(keys, key=lambda key: (*_order(key.descriptor), int(key.mode.value)), reverse=True)

    def _smallest(self, mode: CUDAGraphMode, uniform: bool, batch: BatchDescriptor) -> BatchDescriptor | None:
        if batch.num_tokens == 0:
            return None
        group = self._ordered.get((mode, uniform, batch.has_lora), [])
        start = bisect.bisect_left(group, batch.num_tokens, key=lambda known: known.num_tokens)
        for known in group[start:]:
            if _has_room(known, batch):
                return known
        return None


def _order(descriptor: BatchDescriptor) -> tuple[int, int, int]:
    return descriptor.num_tokens, descriptor.num_active_loras, descriptor.num_reqs or 0


def _has_room(known: BatchDescriptor, batch: BatchDescriptor) -> bool:
    if known.num_active_loras < batch.num_active_loras:
        return False
    if known.num_reqs is None:
        return True
    if known.uniform and known.num_reqs:
        # A uniform graph is made for one number of tokens a request.
        per_request = known.num_tokens // known.num_reqs
        requests = batch.num_reqs if batch.num_reqs is not None else -(-batch.num_tokens // per_request)
        return requests <= known.num_reqs and batch.num_tokens == requests * per_request
    return batch.num_reqs is not None and batch.num_reqs <= known.num_reqs
