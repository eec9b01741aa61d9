"""Events, the bus that hands them out, and the counters that tests read."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from torch_piecewise import events
from torch_piecewise.cudagraphs import graph_events
from torch_piecewise.errors import ArgumentError, PiecewiseError
from torch_piecewise.events import (
    COUNTS,
    Bus,
    Counters,
    CountMismatch,
    Event,
    GraphCaptured,
    GraphSplit,
    PhaseEnded,
    PhaseStarted,
    PieceCompiled,
    PieceCompileStarted,
    PieceFailed,
    PieceLoaded,
    Recompiled,
    StoreLookup,
)
from torch_piecewise.ranges import Range
from torch_piecewise.tags import BACKBONE

SIZES = Range(1, 8)
GIVEN = {"range": SIZES, "source": "store", "tag": BACKBONE, "blocks_apart": {}, "ran": True}
"""Values of fields whose type matters to who counts."""


def compiled() -> PieceCompiled:
    return PieceCompiled(piece="submod_0", range=SIZES, compiler="eager", seconds=0.5)


def loaded(source: str) -> PieceLoaded:
    return PieceLoaded(piece="submod_0", range=SIZES, compiler="eager", source=source, seconds=0.1)


def test_an_event_knows_when_it_was_made_and_does_not_change():
    first, second = GraphCaptured(nodes=3), GraphCaptured(nodes=3)
    assert first.at <= second.at
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.nodes = 4


def test_a_bus_calls_its_observers_in_the_order_they_were_added():
    calls: list[str] = []
    bus = Bus(lambda event: calls.append("first"))
    bus.add(lambda event: calls.append("second"))
    bus.emit(GraphCaptured(nodes=1))
    assert calls == ["first", "second"]


def test_an_observer_is_told_until_it_is_taken_back():
    seen: list[Event] = []
    bus = Bus()
    kept, other = bus.add(seen.append), bus.add(seen.append)
    bus.emit(GraphCaptured(nodes=1))
    kept.close()
    kept.close()
    bus.emit(GraphCaptured(nodes=2))
    other.close()
    bus.emit(GraphCaptured(nodes=3))
    assert [event.nodes for event in seen] == [1, 1, 2]


def test_an_observer_of_a_block_is_told_of_the_block_alone():
    seen: list[Event] = []
    bus = Bus()
    with pytest.raises(KeyError), bus.add(seen.append):
        bus.emit(GraphCaptured(nodes=1))
        raise KeyError
    bus.emit(GraphCaptured(nodes=2))
    assert [event.nodes for event in seen] == [1]


def test_an_observer_may_take_itself_back():
    seen: list[Event] = []
    bus = Bus()
    once = bus.add(lambda event: (seen.append(event), once.close()))
    bus.add(seen.append)
    for nodes in (1, 2):
        bus.emit(GraphCaptured(nodes=nodes))
    assert [event.nodes for event in seen] == [1, 1, 2]


def test_an_observer_added_later_does_not_see_what_was_before():
    seen: list[Event] = []
    bus = Bus()
    bus.emit(GraphCaptured(nodes=1))
    bus.add(seen.append)
    later = GraphCaptured(nodes=2)
    bus.emit(later)
    assert seen == [later]


def test_two_buses_do_not_meet():
    one, other = Counters(), Counters()
    Bus(one).emit(GraphCaptured(nodes=1))
    Bus(other)
    assert (one["graphs_captured"], other["graphs_captured"]) == (1, 0)


def test_a_phase_is_told_at_both_ends_with_its_duration():
    seen: list[Event] = []
    with Bus(seen.append).phase("split"):
        pass
    start, end = seen
    assert isinstance(start, PhaseStarted)
    assert isinstance(end, PhaseEnded)
    assert (start.phase, end.phase, end.failed) == ("split", "split", False)
    assert 0 <= end.seconds <= end.at - start.at


def test_a_phase_that_fails_says_so_and_lets_the_error_through():
    seen: list[Event] = []
    with pytest.raises(KeyError), Bus(seen.append).phase("split"):
        raise KeyError
    assert [getattr(event, "failed", None) for event in seen] == [None, True]


@pytest.mark.parametrize(
    ("event", "counts"),
    [
        (GraphCaptured(nodes=9), {"graphs_captured": 1}),
        (GraphSplit(pieces=5, cuts=4, distinct=3), {"pieces": 5, "cuts": 4, "distinct_pieces": 3}),
        (PieceCompileStarted(piece="submod_0", range=SIZES, compiler="eager"), {"compiles_started": 1}),
        (compiled(), {"artifacts_compiled": 1}),
        (loaded("store"), {"artifacts_loaded": 1, "artifacts_loaded_from_store": 1}),
        (loaded("compiled"), {"artifacts_loaded": 1, "artifacts_loaded_from_compiled": 1}),
        (PieceFailed(piece="submod_0", range=SIZES, reason="no"), {"pieces_failed": 1}),
        (StoreLookup(what="submod_0", hit=True), {"store_hits": 1}),
        (StoreLookup(what="submod_0", hit=False, reason="empty"), {"store_misses": 1}),
        (Recompiled(reason="dtype"), {"recompiles": 1}),
        (PhaseStarted(phase="split"), {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Event) else "",
)
def test_each_event_counts_as_what_it_is(event, counts):
    counters = Counters()
    counters(event)
    assert counters.as_dict() == counts


def test_a_count_that_never_happened_is_zero():
    assert Counters()["recompiles"] == 0


def test_seconds_of_a_phase_are_summed():
    counters = Counters()
    for seconds in (1.0, 0.5):
        counters(PhaseEnded(phase="compile", seconds=seconds))
    counters(PhaseEnded(phase="split", seconds=2.0))
    assert counters.seconds() == {"compile": 1.5, "split": 2.0}


def test_expect_takes_the_change_inside_its_block_alone():
    counters = Counters()
    counters(compiled())
    with counters.expect(artifacts_compiled=2, recompiles=0):
        counters(compiled())
        counters(compiled())


def test_expect_refuses_a_name_that_nothing_counts_as():
    with pytest.raises(ArgumentError) as caught, Counters().expect(graphs_captureed=0, recompiles=0):
        pass
    assert isinstance(caught.value, TypeError)
    assert str(caught.value) == (
        "There is no count named 'graphs_captureed'\n"
        f"  expected: one of {', '.join(COUNTS)}\n"
        "  to do: did you mean 'graphs_captured' or 'sizes_captured'?"
    )


def test_expect_takes_the_counts_of_events_of_ones_own():
    class Served(Event):
        def counts(self):
            return (("served", 2),)

    counters = Counters()
    with counters.expect(served=2):
        counters(Served())


def test_every_count_of_ours_is_known_by_name():
    """Whatever event is added: what it counts as has a word in ``COUNTS``."""
    counters = Counters()
    for name, kind in {**vars(events), **vars(graph_events)}.items():
        if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event:
            given = {one.name: GIVEN.get(one.name, 1) for one in dataclasses.fields(kind)}
            for changed in ({}, {"hit": False}, {"source": "compiled"}):
                counters(kind(**{**given, **{key: changed[key] for key in changed if key in given}}))
            assert counters.as_dict().keys() <= COUNTS.keys(), name
    from_calls = {"calls_replayed", "calls_without_graphs"}
    assert counters.as_dict().keys() | from_calls == COUNTS.keys()


def test_expect_lists_every_count_that_changed_otherwise():
    counters = Counters()
    with pytest.raises(CountMismatch) as caught, counters.expect(artifacts_compiled=1, recompiles=1):
        counters(compiled())
        counters(compiled())
    assert caught.value.got == "artifacts_compiled: expected +1, got +2; recompiles: expected +1, got +0"


def test_a_mismatch_is_an_assertion_for_test_runners_and_an_error_of_ours():
    assert issubclass(CountMismatch, AssertionError)
    assert issubclass(CountMismatch, PiecewiseError)


def test_an_error_in_an_expect_block_is_not_hidden_by_a_mismatch():
    with pytest.raises(KeyError), Counters().expect(recompiles=1):
        raise KeyError


def test_counts_from_many_threads_are_all_there():
    counters = Counters()

    def work() -> None:
        for _ in range(500):
            counters(Recompiled(reason=""))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters["recompiles"] == 2000


def test_an_observer_that_fails_is_logged_and_the_others_are_called(caplog):
    seen = []
    bus = Bus(lambda event: 1 // 0, seen.append)
    bus.emit(GraphCaptured(nodes=3))
    assert len(seen) == 1
    assert "ZeroDivisionError" in caplog.text


def test_an_observer_that_fails_again_and_again_has_one_traceback(caplog):
    caplog.set_level("DEBUG", "torch_piecewise")
    bus = Bus(lambda event: 1 // 0)
    for nodes in range(3):
        bus.emit(GraphCaptured(nodes=nodes))
    assert [record.levelname for record in caplog.records] == ["ERROR", "DEBUG", "DEBUG"]


def test_an_observer_that_cannot_be_called_is_refused():
    with pytest.raises(ArgumentError) as caught:
        Bus().add(3)
    assert str(caught.value) == (
        "An observer of events cannot be called\n"
        "  expected: a function of one event\n"
        "  got: 3 (int)\n"
        "  to do: bus.add(print) shows what comes"
    )


def test_an_amount_that_is_no_number_is_refused_before_the_block_runs():
    with (
        pytest.raises(ArgumentError, match=r"(?s)expect\(graphs_captured=\.\.\.\).*got: '1' \(str\)"),
        Counters().expect(graphs_captured="1"),
    ):
        raise AssertionError("the block ran")
