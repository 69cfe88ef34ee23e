"""Where Tune's loop meets ledger, searcher and pool: the schedulers' clock, the stop gate, the pool's events."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, HyperBandScheduler, TrialScheduler

from qlora_ray.config.schema import Search
from qlora_ray.orchestration import tuning
from qlora_ray.orchestration.tuning import EventPump, Gate, make_scheduler
from qlora_ray.runs import read_events
from tests.unit.orchestration_fixtures import Books, FakePool, make_result, remote

WAIT_S = 60.0


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Books:
    """A sweep whose pool is no actor."""
    monkeypatch.setattr(tuning.ray, "get", lambda value: value)
    return Books(tmp_path)


class FakeTrial:
    """A trial as a scheduler knows it: by identity and status."""

    def __init__(self, status: str = Trial.RUNNING, number: int = 0) -> None:
        self.trial_id, self.status, self.config = f"t{number}", status, {"number": number}


def report_in_turn(scheduler: TrialScheduler, losses: list[float], *, report_index: int) -> list[str]:
    """What the scheduler decides on one report of each trial, made right after it went on from an earlier state."""
    scheduler.set_search_properties("objective", "min")
    controller, decisions = SimpleNamespace(get_live_trials=lambda: []), []
    for number, loss in enumerate(losses):
        trial = FakeTrial(number=number)
        scheduler.on_trial_add(controller, trial)
        result = {"report_index": report_index, "training_iteration": 1, "time_total_s": 1.0, "objective": loss}
        decisions.append(scheduler.on_trial_result(controller, trial, result))
    return decisions


@pytest.mark.parametrize(
    ("search", "losses"),
    [
        ({"scheduler": "asha", "reduction_factor": 2}, [0.1, 0.9]),
        ({"scheduler": "median"}, [0.1, 0.2, 0.3, 0.9]),
    ],
)
def test_a_weak_trial_is_stopped_by_the_number_of_its_report_and_not_of_tunes_iterations(
    search: dict[str, Any], losses: list[float]
) -> None:
    settings = Search.model_validate({"num_reports": 8, "grace_reports": 2, **search})
    decisions = report_in_turn(make_scheduler(settings), losses, report_index=2)
    assert decisions == [TrialScheduler.CONTINUE] * (len(losses) - 1) + [TrialScheduler.STOP]
    before_grace = report_in_turn(make_scheduler(settings), losses, report_index=1)
    assert set(before_grace) == {TrialScheduler.CONTINUE}


@pytest.mark.parametrize(("name", "kind"), [("none", FIFOScheduler), ("hyperband", HyperBandScheduler)])
def test_the_scheduler_is_the_one_that_the_config_names(name: str, kind: type) -> None:
    assert type(make_scheduler(Search.model_validate({"scheduler": name}))) is kind


def test_paused_and_ended_trials_leave_room_for_new_ones(books: Books) -> None:
    searcher = books.make_searcher(num_slots=2)
    gate = Gate(searcher, books.ledger, FakePool())
    statuses = (Trial.PENDING, Trial.RUNNING, Trial.PAUSED, Trial.TERMINATED, Trial.ERROR)
    gate.on_step_begin(1, [FakeTrial(status) for status in statuses])
    assert searcher.num_live == 2


def test_a_report_is_in_the_books_before_its_trial_is_judged(books: Books) -> None:
    searcher = books.make_searcher()
    trial = FakeTrial(number=searcher.suggest("t0")["number"])
    gate = Gate(searcher, books.ledger, FakePool())
    gate.on_trial_result(1, [], trial, make_result(0, 1, loss=0.7))
    assert books.ledger.entries[0].intermediate == books.trials()[0].intermediate_values == {1: 0.7}


@pytest.mark.parametrize("ending", ["on_trial_complete", "on_trial_error"])
def test_a_trial_that_ends_gives_its_slot_back(books: Books, ending: str) -> None:
    pool = FakePool()
    getattr(Gate(books.make_searcher(), books.ledger, pool), ending)(1, [], FakeTrial(number=7))
    assert pool.calls == ["end 0007"]


def test_the_gate_stops_all_trials_or_none(books: Books) -> None:
    gate = Gate(books.make_searcher(), books.ledger, FakePool())
    assert not gate("t0", {}) and not gate.stop_all()
    gate.is_interrupted = True
    assert gate.stop_all() and not gate("t0", {})
    gate.is_interrupted, gate.stop_reason = False, "no executor is left"
    assert gate.stop_all()


def pool_event(name: str, *, reason: str = "why", slots: int = 2, num_failed: int = 0, **facts: Any) -> dict[str, Any]:
    """An event as the pool writes it."""
    counts = {"executor": 0, "hostname": "here", "ready_slots": slots, "num_failed": num_failed}
    return {"event": name, "reason": reason, **counts, **facts}


def pump(books: Books, pool: FakePool, *, num_executors: int = 2) -> tuple[Gate, Any]:
    """Listens to the pool until all of its events are read."""
    searcher = books.make_searcher(num_slots=2)
    gate = Gate(searcher, books.ledger, pool)
    EventPump(pool, ledger=books.ledger, searcher=searcher, gate=gate, num_executors=num_executors).end()
    return gate, searcher


def test_the_pools_events_are_noted_once_and_its_slots_are_the_searchers(books: Books) -> None:
    events = [
        pool_event("executor_ready", slots=4),
        pool_event("trial_leased", slots=4, trial="0000"),
        pool_event("slots_changed", reason="out of memory", slots=3, trial=None) | {"slots": 3},
    ]
    gate, searcher = pump(books, FakePool([dict(event) for event in events]))
    noted = read_events(books.paths.events)
    assert [event["event"] for event in noted] == ["executor_ready", "trial_leased", "slots_changed"]
    assert noted[2]["ready_slots"] == searcher.num_slots == 3
    # What goes as planned is no line of the user's.
    (line,) = books.text.getvalue().splitlines()
    assert "executor 0 has 3 slots" in line and "out of memory" in line
    assert gate.stop_reason is None and not books.ledger.is_stopping


def test_a_search_without_a_ready_executor_still_asks_for_one_trial(books: Books) -> None:
    _, searcher = pump(books, FakePool([pool_event("executor_lost", slots=0)]))
    assert searcher.num_slots == 1


@pytest.mark.parametrize(("num_failed", "stops"), [(1, False), (2, True)])
def test_the_search_ends_when_the_last_executor_is_given_up(books: Books, num_failed: int, stops: bool) -> None:
    event = pool_event("executor_failed", reason="CUDA driver died", slots=0, num_failed=num_failed)
    gate, _ = pump(books, FakePool([event]), num_executors=2)
    assert (gate.stop_reason, gate.stop_all()) == (("CUDA driver died", True) if stops else (None, False))
    # Trials that it cuts off are interrupted, not pruned.
    assert books.ledger.is_stopping is stops
    assert ("search_stopped" in {event["event"] for event in read_events(books.paths.events)}) is stops


def test_the_search_ends_when_the_pool_itself_is_gone(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = threading.Event()
    note = books.ledger.note
    monkeypatch.setattr(books.ledger, "note", lambda *args, **facts: (note(*args, **facts), noted.set()))
    pool = FakePool()

    def die(seen: int, timeout_s: float) -> None:
        raise RayActorError

    pool.next_events = remote(die)
    searcher = books.make_searcher()
    gate = Gate(searcher, books.ledger, pool)
    listening = EventPump(pool, ledger=books.ledger, searcher=searcher, gate=gate, num_executors=1)
    assert noted.wait(WAIT_S)
    listening.end()
    assert books.ledger.is_stopping and gate.stop_all()
    assert "the pool is gone" in str(gate.stop_reason)
