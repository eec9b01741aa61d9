"""What to do when a call comes with other memory than the one that was captured."""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torch_piecewise.cudagraphs.addresses import TensorPlace
from torch_piecewise.cudagraphs.dispatcher import Dispatch
from torch_piecewise.cudagraphs.extents import DynamicInput
from torch_piecewise.cudagraphs.fixed_inputs import FixedInputs

_log = logging.getLogger(__name__)

MOST_RECAPTURES = 8
"""How often captures may be given up because memory changed, before there are no more of them."""


class Verdict(enum.Enum):
    """What becomes of captures when a call does not fit one of them."""

    KEEP = enum.auto()
    """They are good for other calls."""

    GIVE_UP_ONE = enum.auto()
    """The caller has moved to other input buffers: this kind of batch is captured anew."""

    GIVE_UP_ALL = enum.auto()
    """A tensor that is not dynamic is elsewhere now, so nothing captured can serve again."""


class Recaptures:
    """Tells stray calls from memory that has moved for good; counts, so that there is an end to it.

    Args:
        in_place: dynamic inputs that are not copied, by position. A single call that brings them in other
            memory is a stray; a second one in a row with that same memory says that the caller has moved.
    """

    def __init__(self, in_place: Mapping[int, DynamicInput]) -> None:
        self._in_place = frozenset(in_place)
        self._strays: dict[Dispatch, tuple[object, ...]] = {}
        self.count = 0

    def are_over(self) -> bool:
        """Whether memory changed so often that nothing is captured any more."""
        return self.count > MOST_RECAPTURES

    def fits(self, key: Dispatch) -> None:
        """A call was served by what was captured for ``key``."""
        if self._strays:
            self._strays.pop(key, None)

    def judge(self, key: Dispatch, captured: FixedInputs, args: Sequence[Any]) -> Verdict:
        """What a call that was refused means for what was captured."""
        moved = captured.moved(args)
        if moved - self._in_place:
            return Verdict.GIVE_UP_ALL
        if not moved:
            return Verdict.KEEP
        places = tuple(_place(args[at]) for at in sorted(self._in_place))
        before = self._strays.get(key)
        self._strays[key] = places
        return Verdict.GIVE_UP_ONE if places == before else Verdict.KEEP

    def note(self) -> None:
        """Something captured was given up because memory changed."""
        self.count += 1
        self._strays.clear()
        if self.count == MOST_RECAPTURES + 1:
            _log.warning("tensors that are captured change with every call; nothing is captured any more")

    def forget(self) -> None:
        """Start again from nothing."""
        self.count = 0
        self._strays.clear()


def _place(value: object) -> object:
    return TensorPlace.of(value) if isinstance(value, torch.Tensor) else value
