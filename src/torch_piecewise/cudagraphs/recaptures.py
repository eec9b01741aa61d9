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
"""How often in a row captures may be given up because memory changed, before there are no more of them."""

STABLE_REPLAYS = 8
"""So many replays between two changes of memory pay for the captures: the changes are not in a row."""


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
        self._replays = 0
        self._count = 0
        self.why = ""

    def are_over(self) -> bool:
        """Whether memory changed so often that nothing is captured any more, until the next warm-up."""
        return self._count > MOST_RECAPTURES

    def fits(self, key: Dispatch) -> None:
        """A call was served by what was captured for ``key``."""
        self._replays += 1
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

    def note(self, name: str) -> None:
        """Something captured was given up because ``name`` lies in other memory."""
        self._count = 1 if self._replays >= STABLE_REPLAYS else self._count + 1
        self._replays = 0
        self._strays.clear()
        if self._count == MOST_RECAPTURES + 1:
            self.why = f"its memory changes from call to call: {name}"
            _log.warning(
                "%s comes in other memory again and again: nothing is captured any more until the next "
                "warmup(); change its values in place instead (copy_)",
                name,
            )

    def forget(self) -> None:
        """Start again from nothing."""
        self._count = self._replays = 0
        self._strays.clear()


def _place(value: object) -> object:
    return TensorPlace.of(value) if isinstance(value, torch.Tensor) else value
