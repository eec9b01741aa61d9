"""Captures that are made between calls: in a warm-up, or of what calls asked for.

Nothing here is locked: the runner holds its backend's turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from torch_piecewise.cudagraphs.capture_failed import CaptureFailed
from torch_piecewise.cudagraphs.captured_sizes import CapturedSizes
from torch_piecewise.cudagraphs.descriptor import BatchDescriptor
from torch_piecewise.cudagraphs.dispatcher import CUDAGraphDispatcher, Dispatch
from torch_piecewise.cudagraphs.extents import DynamicInput
from torch_piecewise.cudagraphs.fixed_inputs import CallTemplate
from torch_piecewise.errors import StaticGraphError

Example = Sequence[Any] | Callable[[int], Sequence[Any]]
Progress = Callable[[int, int, BatchDescriptor], object]


class Unattended:
    """Knows what a call looks like and what calls asked for, and captures without one.

    Args:
        sizes: what captures.
        dispatcher: which sizes there are.
        in_place: dynamic inputs that are not copied: sizes other than a call's own lie in the same memory.
    """

    def __init__(
        self, sizes: CapturedSizes, dispatcher: CUDAGraphDispatcher, in_place: Mapping[int, DynamicInput]
    ) -> None:
        self._sizes = sizes
        self._dispatcher = dispatcher
        self._in_place = in_place
        self._template: CallTemplate | None = None
        self._asked: dict[Dispatch, CallTemplate] = {}

    def saw(self, args: Sequence[Any]) -> None:
        """A call that no graph served had these arguments."""
        if self._template is None:
            self._template = self._sizes.template(args)

    def looks_like(self, template: CallTemplate) -> None:
        """What calls look like from now on."""
        self._template = template

    def ask(self, key: Dispatch, template: CallTemplate) -> None:
        """Capture ``key`` in the next :meth:`capture_asked`."""
        self._asked[key] = template

    def renew(self, current: Mapping[int, torch.Tensor]) -> None:
        """Tensors that stay are these now."""
        if self._template is not None:
            self._template = self._template.renewed(current)
        self._asked = {key: template.renewed(current) for key, template in self._asked.items()}

    def forget(self) -> None:
        """Memory has changed: no call is known any more."""
        self._asked.clear()
        self._template = None

    def capture(
        self, wanted: Iterable[int] | None, example: Example | None, progress: Progress | None
    ) -> None:
        """Capture sizes, largest first, as far as the budget goes; see :meth:`StaticGraphRunner.warmup`.

        Raises:
            StaticGraphError: there is no example. Whatever the model raises comes through.
        """
        chosen = None if wanted is None else set(wanted)
        self.make_room_for_the_largest()
        keys = self._missing(chosen)
        if keys:
            # What lay in smaller buffers goes, and is captured again.
            gone = self._sizes.make_room(self._example(example, keys[0].descriptor.num_tokens))
            keys = [key for key in self._dispatcher.capture_order() if key in gone or key in keys]
        failed: CaptureFailed | None = None
        for done, key in enumerate(keys, start=1):
            template = self._example(example, key.descriptor.num_tokens)
            try:
                self._sizes.capture_unattended(key, template, collect=done == 1, may_evict=False)
            except CaptureFailed as error:  # a smaller size may need what this one lacked
                failed = failed or error
            if progress is not None:
                progress(done, len(keys), key.descriptor)
        if failed is not None:
            raise failed

    def _missing(self, chosen: set[int] | None) -> list[Dispatch]:
        return [
            key
            for key in self._dispatcher.capture_order()
            if not self._sizes.is_current(key) and (chosen is None or key.descriptor.num_tokens in chosen)
        ]

    def capture_asked(self) -> int:
        """Capture what calls asked for, largest first; how many kinds of batches that were."""
        asked, self._asked = self._asked, {}
        captured = 0
        self.make_room_for_the_largest()
        for key in sorted(asked, key=lambda key: key.descriptor.num_tokens, reverse=True):
            self._sizes.capture_unattended(key, asked[key], collect=False, may_evict=True)
            captured += key in self._sizes
        return captured

    def make_room_for_the_largest(self) -> None:
        """Buffers that grow later cost everything that was captured on them."""
        for known in self._dispatcher.capture_order()[:1]:
            self._sizes.expect_size(known.descriptor.num_tokens)

    def _example(self, example: Example | None, size: int) -> CallTemplate:
        if example is not None:
            self._template = self._sizes.template(example(size) if callable(example) else example)
        if self._template is None:
            raise StaticGraphError(
                "Sizes cannot be captured before the inputs of a call are known",
                expected="an example of a call's arguments, or a call before",
                hint="call the model once first (a runner of your own: warmup(example=...))",
            )
        if callable(example) or not self._in_place:
            return self._template
        return self._template.in_place(self._in_place, size)
