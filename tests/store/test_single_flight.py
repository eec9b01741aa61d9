from __future__ import annotations

import threading
import time

import pytest

from torch_piecewise.store import Draft, Flights, Hit, MemoryStore, Miss, get_or_make
from torch_piecewise.store.base import Cause
from torch_piecewise.store.files import Files
from torch_piecewise.store.locks import RangeLocks

A = "a" * 64


@pytest.fixture(params=["with locks", "without locks"])
def flights(request, tmp_path):
    return Flights(RangeLocks(tmp_path / "flights.lock", Files()) if request.param == "with locks" else None)


def in_threads(count, work):
    errors = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)


def test_threads_take_turns(flights):
    inside, most = [], []

    def work() -> None:
        with flights.flight(A):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.005)
            inside.pop()

    in_threads(8, work)
    assert most == [1] * 8


def test_flights_of_different_keys_do_not_wait_for_each_other(flights):
    with flights.flight(A), flights.flight("b" * 64) as second:
        assert second.waited == 0.0


def test_an_exception_ends_the_turn(flights):
    with pytest.raises(ZeroDivisionError), flights.flight(A):
        raise ZeroDivisionError
    with flights.flight(A, timeout=0.1) as turn:
        assert turn.waited == 0.0


def test_a_wait_that_takes_too_long_goes_on_without_owning_the_turn(tmp_path):
    one = Flights(RangeLocks(tmp_path / "flights.lock", Files()))
    other = Flights(RangeLocks(tmp_path / "flights.lock", Files()))
    with one.flight(A) as first:
        assert first.owned
        with other.flight(A, timeout=0.05) as second:
            assert not second.owned
            assert second.waited >= 0.05
            assert "another process" in second.reason


def test_a_waiting_thread_times_out_as_well(flights):
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with flights.flight(A):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)
    with flights.flight(A, timeout=0.05) as turn:
        assert not turn.owned
        assert "another thread" in turn.reason
    leave.set()
    thread.join()


def test_who_waits_hears_of_it_at_once_and_then_now_and_again(tmp_path):
    one = Flights(RangeLocks(tmp_path / "flights.lock", Files()))
    other = Flights(RangeLocks(tmp_path / "flights.lock", Files()), notice_every=0.1)
    heard: list[float] = []
    with one.flight(A), other.flight(A, timeout=0.5, on_wait=heard.append):
        pass
    assert heard[0] < 0.1
    assert 2 <= len(heard) <= 6


def test_who_does_not_wait_hears_nothing(flights):
    heard: list[float] = []
    with flights.flight(A, on_wait=heard.append):
        pass
    assert heard == []


def test_locks_that_do_not_work_degrade_to_turns_among_threads(tmp_path):
    class Broken:
        def try_acquire(self, key: str) -> None:
            raise OSError(30, "Read-only file system")

        def close_in_child(self) -> None:
            return

    with Flights(Broken()).flight(A) as turn:
        assert not turn.owned
        assert "Read-only file system" in turn.reason


def test_no_seat_is_kept_when_nobody_uses_it(flights):
    in_threads(4, lambda: _pass_through(flights))
    assert flights._seats == {}


def _pass_through(flights: Flights) -> None:
    with flights.flight(A):
        pass


class Maker:
    def __init__(self, seconds: float = 0.0) -> None:
        self.misses: list[Miss] = []
        self._seconds = seconds

    def __call__(self, miss: Miss) -> tuple[bytes, Draft]:
        self.misses.append(miss)
        time.sleep(self._seconds)
        return b"made", Draft([], {"x": b"made"})


def loader(store):
    return lambda entry: store.blobs.read(entry.blobs["x"])


def test_what_is_absent_is_made_and_kept_then_loaded(flights):
    store, make = MemoryStore(), Maker()
    first = get_or_make(store, flights, A, load=loader(store), make=make)
    second = get_or_make(store, flights, A, load=loader(store), make=make)
    assert (first.value, first.made) == (b"made", True)
    assert (second.value, second.made, second.miss) == (b"made", False, None)
    assert len(make.misses) == 1
    assert first.miss.cause is Cause.ABSENT


def test_of_many_threads_one_makes_and_all_get_it(flights):
    store, make, values = MemoryStore(), Maker(0.05), []
    in_threads(8, lambda: values.append(get_or_make(store, flights, A, load=loader(store), make=make).value))
    assert values == [b"made"] * 8
    assert len(make.misses) == 1


def test_after_a_maker_fails_the_next_one_makes(flights):
    store = MemoryStore()
    attempts = []

    def make(miss: Miss) -> tuple[bytes, Draft]:
        attempts.append(1)
        time.sleep(0.02)
        if len(attempts) == 1:
            raise ZeroDivisionError
        return b"made", Draft([], {"x": b"made"})

    outcomes = []

    def work() -> None:
        try:
            outcomes.append(get_or_make(store, flights, A, load=loader(store), make=make).value)
        except ZeroDivisionError:
            outcomes.append("failed")

    in_threads(4, work)
    assert sorted(outcomes, key=str) == [b"made"] * 3 + ["failed"]
    assert len(attempts) == 2


def test_an_entry_that_does_not_load_is_made_anew_with_the_reason(flights):
    store, make = MemoryStore(), Maker()
    store.put(A, Draft([], {"x": b"unfit"}))
    unfit = Miss("needs avx512", Cause.FOREIGN)
    outcome = get_or_make(store, flights, A, load=lambda entry: unfit, make=make)
    assert outcome.made
    assert make.misses == [unfit]


def test_a_value_that_cannot_be_kept_is_still_returned(flights):
    store = MemoryStore()
    outcome = get_or_make(store, flights, A, load=lambda entry: Hit(b""), make=lambda miss: (b"live", None))
    assert outcome.value == b"live"
    assert isinstance(store.get(A), Miss)
