"""One maker for each key, across processes and threads; the others wait and take what it made.

The lock is about saving work, never about being right: whatever goes wrong with it (no locks on this file
system, a wait that takes too long) costs a second compile of the same thing, and publishing is atomic anyway.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch_piecewise.store.base import Draft, Entry, Found, Hit, Miss, Store
from torch_piecewise.store.locks import Held, Locks

T = TypeVar("T")

_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.25
_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Turn:
    """How a flight began.

    Attributes:
        owned: whether nobody else is in a flight of this key now. False after a timeout, or without locks.
        waited: seconds spent waiting for others.
        reason: why it is not owned; empty if it is.
    """

    owned: bool
    waited: float
    reason: str = ""


@dataclass
class _Seat:
    lock: threading.Lock
    users: int = 0


class Flights:
    """Gives out turns by key.

    Args:
        locks: between processes; None where they do not work, so that only threads wait for each other.
        notice_every: seconds between two calls of ``on_wait``.
    """

    def __init__(self, locks: Locks | None, *, notice_every: float = 5.0) -> None:
        self._locks = locks
        self._notice_every = notice_every
        self._seats: dict[str, _Seat] = {}
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def flight(
        self,
        key: str,
        *,
        timeout: float | None = None,
        on_wait: Callable[[float], None] | None = None,
    ) -> Iterator[Turn]:
        """Be the only one in this block for ``key``, as far as that can be had.

        Look into the store again inside the block: while waiting, another may have put what is needed. A dead
        owner's turn ends at once. Flights of different keys may nest if everybody nests them in one order.

        Args:
            timeout: seconds to wait at most, then go on without owning the turn; None waits for ever.
            on_wait: called with the seconds waited so far, when waiting begins and every few seconds.
        """
        wait = _Wait(timeout, on_wait, self._notice_every)
        with self._seat(key) as seat:
            if not wait.until(lambda: seat.lock.acquire(blocking=False)):
                yield Turn(False, wait.seconds(), "another thread took too long")
                return
            try:
                held, reason = self._take(key, wait)
                try:
                    yield Turn(held is not None, wait.seconds(), reason)
                finally:
                    if held is not None:
                        held.release()
            finally:
                seat.lock.release()

    def _take(self, key: str, wait: _Wait) -> tuple[Held | None, str]:
        if self._locks is None:
            return None, "locks do not work here"
        taken: list[Held] = []
        locks = self._locks

        def attempt() -> bool:
            held = locks.try_acquire(key)
            if held is not None:
                taken.append(held)
            return held is not None

        try:
            done = wait.until(attempt)
        except OSError as error:
            return None, f"locks do not work here: {error.strerror or error}"
        return (taken[0], "") if done else (None, "another process took too long")

    @contextlib.contextmanager
    def _seat(self, key: str) -> Iterator[_Seat]:
        with self._guard:
            seat = self._seats.setdefault(key, _Seat(threading.Lock()))
            seat.users += 1
        try:
            yield seat
        finally:
            with self._guard:
                seat.users -= 1
                if seat.users == 0 and self._seats.get(key) is seat:
                    del self._seats[key]

    def close_in_child(self) -> None:
        """After a fork, in the child: no flight of the parent is the child's."""
        self._guard = threading.Lock()
        self._seats = {}
        if self._locks is not None:
            self._locks.close_in_child()


class _Wait:
    def __init__(
        self, timeout: float | None, on_wait: Callable[[float], None] | None, notice_every: float
    ) -> None:
        self._timeout = timeout
        self._on_wait = on_wait
        self._notice_every = notice_every
        self._began: float | None = None
        self._noticed: float | None = None

    def seconds(self) -> float:
        return 0.0 if self._began is None else time.monotonic() - self._began

    def until(self, attempt: Callable[[], bool]) -> bool:
        """Try until it works; False when the time is up."""
        pause = _FIRST_PAUSE
        while not attempt():
            if self._began is None:
                self._began = time.monotonic()
            waited = self.seconds()
            if self._timeout is not None and waited >= self._timeout:
                return False
            self._notice(waited)
            time.sleep(pause if self._timeout is None else min(pause, max(self._timeout - waited, 0.001)))
            pause = min(pause * 1.5, _LONGEST_PAUSE)
        return True

    def _notice(self, waited: float) -> None:
        due = self._noticed is None or waited - self._noticed >= self._notice_every
        if self._on_wait is not None and due:
            self._noticed = waited
            self._on_wait(waited)


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What :func:`get_or_make` came back with.

    Attributes:
        value: loaded from the store, or made.
        made: whether this call made it.
        miss: why the first look-up failed; None if it did not.
        waited: seconds spent waiting for another maker.
    """

    value: T
    made: bool
    miss: Miss | None
    waited: float


def get_or_make(
    store: Store,
    flights: Flights,
    key: str,
    *,
    load: Callable[[Entry], Found[T]],
    make: Callable[[Miss], tuple[T, Draft | None]],
    timeout: float | None = None,
    on_wait: Callable[[float], None] | None = None,
) -> Outcome[T]:
    """The value of ``key``, made by exactly one of all who ask at the same time.

    Args:
        load: an entry to its value, or a miss where its blobs turn out damaged or unfit.
        make: makes the value where the store has none; given why. Its draft is put; None is not kept.
        timeout, on_wait: as for :meth:`Flights.flight`; after a timeout the value is made without waiting.

    Raises:
        StoreError: ``put`` failed. Use a store that degrades where the value matters more than keeping it.
    """
    found = _attempt(store, key, load)
    if isinstance(found, Hit):
        return Outcome(found.value, False, None, 0.0)
    first, last, waited = found, found, 0.0
    for number in range(_ROUNDS):
        with flights.flight(key, timeout=timeout, on_wait=on_wait) as turn:
            waited += turn.waited
            kept = store.get(key)
            # In the last round an entry that does not load is made anew, though nobody could set it aside.
            if isinstance(kept, Miss) or number == _ROUNDS - 1:
                value, draft = make(kept if isinstance(kept, Miss) else last)
                if draft is not None:
                    store.put(key, draft)
                return Outcome(value, True, first, waited)
        # Loaded outside the turn, so that those who waited load side by side.
        found = load(kept.value)
        if isinstance(found, Hit):
            return Outcome(found.value, False, first, waited)
        last = found
    raise AssertionError("the last round makes")


def _attempt(store: Store, key: str, load: Callable[[Entry], Found[T]]) -> Found[T]:
    found = store.get(key)
    return found if isinstance(found, Miss) else load(found.value)
