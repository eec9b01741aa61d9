"""How much memory and time captured graphs may take, and what they took."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch_piecewise.errors import ConfigError

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class GraphBudget:
    """Limits for the graphs of one runner, or of all that share a :class:`Spent`.

    Attributes:
        max_bytes: device memory, measured after each capture; None for no limit. A capture cannot be measured
            before it is made, so memory may be above the limit for as long as it takes to give one up again.
        max_seconds: time spent on capturing, over the runner's life; None for no limit.

    Raises:
        ConfigError: a negative limit.
    """

    max_bytes: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_bytes", self.max_bytes), ("max_seconds", self.max_seconds)):
            if value is not None and value < 0:
                raise ConfigError(f"{name} of a graph budget is negative", got=str(value))


@dataclass(frozen=True)
class BudgetReport:
    """Where a budget stands.

    Attributes:
        bytes_used: device memory of all graphs that share the budget, measured after the last capture or
            eviction.
        seconds_used: time spent on capturing them, given up captures included.
        captured: kinds of batches that have graphs now.
        evicted: how many were given up to make room.
        refused: how many captures were not made, or not kept, for want of room.
        limits: the budget itself.
    """

    bytes_used: int
    seconds_used: float
    captured: int
    evicted: int
    refused: int
    limits: GraphBudget


class Spent:
    """What graphs took in all, over every ledger that shares it. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = 0
        self.seconds = 0.0

    def add(self, *, bytes: int = 0, seconds: float = 0.0) -> None:
        """Note a change, measured around a capture or an eviction."""
        with self._lock:
            self.bytes = max(0, self.bytes + bytes)
            self.seconds += seconds


class Ledger(Generic[K]):
    """Who costs what, and who was used last. Not locked: used within a pool's turn.

    Graphs of one pool share memory, so what one of them cost may not come back when it goes. The total is
    therefore what was measured, and single costs serve only to tell who is worth evicting.

    Args:
        limits: of all ledgers that share ``spent``.
        spent: None for one of its own.
    """

    def __init__(self, limits: GraphBudget, spent: Spent | None = None) -> None:
        self.limits = limits
        self._costs: dict[K, int] = {}
        self._spent = spent or Spent()
        self._evicted = 0
        self._refused = 0

    def has_time(self) -> bool:
        """Whether another capture may begin."""
        return self.limits.max_seconds is None or self._spent.seconds < self.limits.max_seconds

    def has_room(self) -> bool:
        """Whether the measured memory leaves room for another capture."""
        return self.limits.max_bytes is None or self._spent.bytes < self.limits.max_bytes

    def is_over(self) -> bool:
        """Whether the measured memory is above the limit."""
        return self.limits.max_bytes is not None and self._spent.bytes > self.limits.max_bytes

    def charge(self, change: int) -> None:
        """Note by how many bytes a capture or an eviction changed what graphs take, measured around it."""
        self._spent.add(bytes=change)

    def spend(self, seconds: float) -> None:
        """Note time spent on capturing."""
        self._spent.add(seconds=seconds)

    def enter(self, key: K, cost: int) -> None:
        """``key`` was captured and took ``cost`` bytes; it counts as just used."""
        self._costs[key] = cost

    def touch(self, key: K) -> None:
        """``key`` was just used."""
        if key in self._costs:
            self._costs[key] = self._costs.pop(key)

    def victim(self, spare: K) -> K | None:
        """The key that was not used for longest, among those that cost anything; never ``spare``."""
        return next((key for key, cost in self._costs.items() if cost > 0 and key != spare), None)

    def leave(self, key: K, *, evicted: bool = False) -> None:
        """The graphs of ``key`` are gone."""
        self._costs.pop(key, None)
        self._evicted += evicted

    def refuse(self) -> None:
        """A capture was not made, or not kept."""
        self._refused += 1

    def report(self) -> BudgetReport:
        """Where things stand."""
        return BudgetReport(
            self._spent.bytes,
            self._spent.seconds,
            len(self._costs),
            self._evicted,
            self._refused,
            self.limits,
        )
