"""What happens inside, as typed values, and who listens.

An :class:`Event` is a frozen record. A :class:`Bus` hands each event to its observers; it belongs to
one compiled model, never to the process. :class:`Counters` is the observer that tests and reports use.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

from torch_piecewise.errors import ArgumentError
from torch_piecewise.events.counters import COUNTS as COUNTS
from torch_piecewise.events.counters import Counters as Counters
from torch_piecewise.events.counters import CountMismatch as CountMismatch
from torch_piecewise.events.kinds import Event as Event
from torch_piecewise.events.kinds import GraphCaptured as GraphCaptured
from torch_piecewise.events.kinds import GraphSplit as GraphSplit
from torch_piecewise.events.kinds import PassRecord as PassRecord
from torch_piecewise.events.kinds import PhaseEnded as PhaseEnded
from torch_piecewise.events.kinds import PhaseStarted as PhaseStarted
from torch_piecewise.events.kinds import PieceCompiled as PieceCompiled
from torch_piecewise.events.kinds import PieceCompileStarted as PieceCompileStarted
from torch_piecewise.events.kinds import PieceFailed as PieceFailed
from torch_piecewise.events.kinds import PieceKeptEager as PieceKeptEager
from torch_piecewise.events.kinds import PieceLoaded as PieceLoaded
from torch_piecewise.events.kinds import Recompiled as Recompiled
from torch_piecewise.events.kinds import StoreLookup as StoreLookup
from torch_piecewise.tags import BACKBONE, ModelTag

logger = logging.getLogger("torch_piecewise")

Observer = Callable[[Event], None]


class Subscription:
    """An observer on a bus, until it is closed; as a context manager it is closed at the end of the block."""

    def __init__(self, observer: Observer, bus: Bus) -> None:
        self.observer = observer
        self._bus = bus
        self._has_failed = False

    def failed(self, event: Event) -> None:
        """Log the exception that the observer raised at ``event``; but once, at DEBUG."""
        level, self._has_failed = logging.DEBUG if self._has_failed else logging.ERROR, True
        logger.log(
            level,
            "an observer of events failed at %s; what it raises later is logged at DEBUG",
            type(event).__name__,
            exc_info=True,
        )

    def close(self) -> None:
        """No longer tell the observer; a second time does nothing."""
        self._bus.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()


class Bus:
    """Hands each event to every observer, in the order in which they were added. Safe to use from threads.

    ::

        with tp.program_of(model).bus.add(print):
            model(x)

    Args:
        tag: the part of a model whose events these are.
    """

    def __init__(self, *observers: Observer, tag: ModelTag = BACKBONE) -> None:
        self._lock = threading.Lock()
        self._subscriptions = tuple(Subscription(observer, self) for observer in observers)
        self.tag = tag

    def emit(self, event: Event) -> None:
        """Call every observer with ``event`` on this thread.

        What one raises is logged, and calls go on: the first time with its traceback, later at level DEBUG.
        """
        for one in self._subscriptions:
            try:
                one.observer(event)
            except Exception:  # noqa: BLE001 - whatever it is, it is logged there
                one.failed(event)

    def add(self, observer: Observer) -> Subscription:
        """From now on also call ``observer``, until what is returned is closed (``with`` does that).

        Raises:
            ArgumentError: ``observer`` cannot be called.
        """
        if not callable(observer):
            raise ArgumentError(
                "An observer of events cannot be called",
                expected="a function of one event",
                got=f"{observer!r} ({type(observer).__name__})",
                hint="bus.add(print) shows what comes",
            )
        added = Subscription(observer, self)
        with self._lock:
            self._subscriptions = (*self._subscriptions, added)
        return added

    def remove(self, subscription: Subscription) -> None:
        """No longer tell the observer of ``subscription``; one that is not on this bus changes nothing."""
        with self._lock:
            self._subscriptions = tuple(one for one in self._subscriptions if one is not subscription)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Emit :class:`PhaseStarted` and :class:`PhaseEnded` around a block."""
        self.emit(PhaseStarted(phase=name))
        start = time.monotonic()
        try:
            yield
        except BaseException:
            seconds = time.monotonic() - start
            self.emit(PhaseEnded(phase=name, seconds=seconds, failed=True, tag=self.tag))
            raise
        self.emit(PhaseEnded(phase=name, seconds=time.monotonic() - start, tag=self.tag))
