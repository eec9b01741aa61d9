"""What serves a call: a captured kind of batch, or compiled code and the reason for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs.context import current_forward_context
from torch_piecewise.cudagraphs.descriptor import BatchDescriptor
from torch_piecewise.cudagraphs.dispatcher import CUDAGraphDispatcher, Dispatch


@dataclass(frozen=True)
class Refusal:
    """Why no graph serves a call."""

    why: str


class Decisions:
    """Decides by the context where there is one, else by the size; remembers what sizes came to.

    Args:
        dispatcher: knows what is (to be) captured.
        uniform_when: whether a call, given its arguments, is a uniform decode batch; None: none is.
        no_padding: why only calls of exactly a captured size may replay; empty where calls are padded.
    """

    def __init__(
        self,
        dispatcher: CUDAGraphDispatcher,
        uniform_when: Callable[[Sequence[Any]], bool] | None,
        no_padding: str,
    ) -> None:
        self._dispatcher = dispatcher
        self._uniform_when = uniform_when
        self._no_padding = no_padding
        self._known: dict[tuple[int, bool], Dispatch] = {}

    def of(self, size: int, args: Sequence[Any]) -> Dispatch | Refusal:
        """What serves a call."""
        context = current_forward_context()
        if context is not None:
            if context.mode and size > context.descriptor.num_tokens:
                said = context.descriptor.num_tokens
                return Refusal(f"forward_context says {said} tokens, the call has {size}")
            fits = self._dispatcher.policy.has_mode(context.mode)
            mode = context.mode if fits else CUDAGraphMode.NONE
            return self._checked(Dispatch(mode, context.descriptor), size)
        uniform = self._uniform_when is not None and self._uniform_when(args)
        known = self._known.get((size, uniform))
        if known is not None:
            return known
        found = self._checked(self._dispatcher.dispatch(BatchDescriptor(size, uniform=uniform)), size)
        if isinstance(found, Dispatch):
            # Sizes that nothing serves are not kept: there is no end of them.
            self._known[size, uniform] = found
        return found

    def forget(self) -> None:
        """The dispatcher has learned new sizes."""
        self._known.clear()

    def _checked(self, decision: Dispatch, size: int) -> Dispatch | Refusal:
        if not decision.mode:
            return Refusal("no graph is meant for it")
        if self._no_padding and decision.descriptor.num_tokens != size:
            return Refusal(self._no_padding)
        return decision
