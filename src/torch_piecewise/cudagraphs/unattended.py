"""Captures that are made between calls: in a warm-up, or of what calls asked for.

Nothing here is locked: the runner holds its backend's turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

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
        keys = [
            key
            for key in self._dispatcher.capture_order()
            if not self._sizes.is_current(key) and (chosen is None or key.descriptor.num_tokens in chosen)
        ]
        self.make_room_for_the_largest()
        for done, key in enumerate(keys, start=1):
            template = self._example(example, key.descriptor.num_tokens)
            self._sizes.capture_unattended(key, template, collect=done == 1, may_evict=False)
            if progress is not None:
                progress(done, len(keys), key.descriptor)

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
                hint="call the model once first, or pass example=(...) to the runner's warmup",
            )
        if callable(example) or not self._in_place:
            return self._template
        return self._template.in_place(self._in_place, size)
