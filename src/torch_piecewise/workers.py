"""Worker processes: made early, lent to whoever compiles, ended when nobody needs them."""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch_piecewise.worker import Worker

IDLE_SECONDS = 30.0
"""How long a worker waits for more; each holds some 300 MB."""


@dataclass(frozen=True)
class _Surroundings:
    """What a child takes from its parent when it is made; one made under others is of no use."""

    folder: Path
    path: tuple[str, ...]
    environment: frozenset[tuple[str, str]]

    @classmethod
    def now(cls) -> _Surroundings:
        return cls(Path.cwd(), tuple(sys.path), frozenset(os.environ.items()))


@dataclass(frozen=True)
class _Idle:
    worker: Worker
    made_in: _Surroundings
    since: float


class Workers:
    """Lends workers. Safe to use from several threads.

    Args:
        idle_seconds: after which a worker that nobody borrows is ended.
    """

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._idle: list[_Idle] = []
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def warm(self, count: int, preparation: bytes) -> None:
        """See that ``count`` workers wait, made now where they are missing.

        Args:
            preparation: what a new one does first (:class:`~torch_piecewise.worker.Worker`).
        """
        for _ in range(count - self.waiting()):
            self._lay_by(Worker(preparation), _Surroundings.now())

    def waiting(self) -> int:
        """How many could be lent at once."""
        here = _Surroundings.now()
        with self._lock:
            return sum(one.made_in == here for one in self._idle)

    @contextmanager
    def lent(self, preparation: bytes) -> Iterator[Worker]:
        """A worker that has done its preparation; a new one where none waits.

        Raises:
            WorkerError: it ended, now or within the context; it is not used again.
        """
        here = _Surroundings.now()
        worker = self._borrow(here) or Worker(preparation)
        try:
            worker.wait_until_ready()
            yield worker
        except BaseException:
            worker.close()
            raise
        self._lay_by(worker, here)

    def close(self) -> None:
        """End all that wait."""
        with self._lock:
            idle, self._idle = self._idle, []
        for one in idle:
            one.worker.close()

    def _borrow(self, here: _Surroundings) -> Worker | None:
        while True:
            with self._lock:
                found = next((one for one in self._idle if one.made_in == here), None)
                if found is None:
                    return None
                self._idle.remove(found)
            if found.worker.is_alive():
                return found.worker
            found.worker.close()

    def _lay_by(self, worker: Worker, made_in: _Surroundings) -> None:
        with self._lock:
            self._idle.append(_Idle(worker, made_in, time.monotonic()))
            if self._timer is None:
                self._start_timer()

    def _start_timer(self) -> None:
        self._timer = threading.Timer(self._idle_seconds, self._end_old)
        self._timer.daemon = True
        self._timer.start()

    def _end_old(self) -> None:
        limit = time.monotonic() - self._idle_seconds
        with self._lock:
            old = [one for one in self._idle if one.since <= limit]
            self._idle = [one for one in self._idle if one.since > limit]
            self._timer = None
            if self._idle:
                self._start_timer()
        for one in old:
            one.worker.close()


def shared_workers() -> Workers:
    """The workers that all programs of this process share."""
    return _workers_of(os.getpid())


@functools.cache
def _workers_of(_process: int) -> Workers:
    return Workers()
