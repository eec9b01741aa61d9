"""What graphs cost, and who has to go."""

from __future__ import annotations

import pytest

from torch_piecewise.cudagraphs import GraphBudget
from torch_piecewise.cudagraphs.budget import Ledger
from torch_piecewise.errors import ConfigError


def test_without_limits_there_is_always_room():
    ledger: Ledger[str] = Ledger(GraphBudget())
    ledger.charge(10**15)
    ledger.spend(10**9)
    assert ledger.has_time()
    assert ledger.has_room()
    assert not ledger.is_over()


def test_time_is_up_when_it_is_spent():
    ledger: Ledger[str] = Ledger(GraphBudget(max_seconds=1.0))
    ledger.spend(0.9)
    assert ledger.has_time()
    ledger.spend(0.2)
    assert not ledger.has_time()


def test_the_least_recently_used_that_costs_anything_goes_first():
    ledger: Ledger[str] = Ledger(GraphBudget(max_bytes=10))
    for key, cost in (("a", 5), ("b", 0), ("c", 5), ("d", 5)):
        ledger.charge(cost)
        ledger.enter(key, cost)
    ledger.touch("a")
    ledger.touch("unknown")
    assert ledger.is_over()
    assert ledger.victim(spare="d") == "c"
    ledger.leave("c", evicted=True)
    ledger.charge(-5)
    assert not ledger.is_over()
    assert ledger.victim(spare="a") == "d"
    ledger.leave("d")
    assert ledger.victim(spare="a") is None


def test_the_report_says_where_things_stand():
    limits = GraphBudget(max_bytes=10, max_seconds=2.5)
    ledger: Ledger[str] = Ledger(limits)
    ledger.charge(7)
    ledger.enter("a", 7)
    ledger.spend(0.5)
    ledger.enter("b", 0)
    ledger.leave("b", evicted=True)
    ledger.refuse()
    report = ledger.report()
    assert (report.bytes_used, report.seconds_used, report.limits) == (7, 0.5, limits)
    assert (report.captured, report.evicted, report.refused) == (1, 1, 1)


@pytest.mark.parametrize("limits", [{"max_bytes": -1}, {"max_seconds": -0.1}])
def test_a_limit_below_zero_is_refused(limits):
    with pytest.raises(ConfigError, match="negative"):
        GraphBudget(**limits)
