"""A search whose time or GPU-hours are spent: who goes on, who can go on in a resume, and that there is a winner."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.config.documents import Document
from qlora_ray.config.durations import parse_duration
from qlora_ray.config.loading import validate_document
from qlora_ray.config.schema import Search
from qlora_ray.errors import ConfigError
from qlora_ray.orchestration.search_budget import SearchBudget
from qlora_ray.orchestration.searcher import settle_finished
from qlora_ray.runs import read_events
from qlora_ray.runs.records import TrialRecord, TrialStatus, read_record
from qlora_ray.search.study import end_interrupted, requeue_interrupted
from qlora_ray.training.engine import Failure, Report
from tests.unit.search_fixtures import NUM_REPORTS, World

COMPLETE, INTERRUPTED, FAILED = TrialStatus.COMPLETE, TrialStatus.INTERRUPTED, TrialStatus.FAILED
BUDGET_S = 100.0


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_world(folder: Path, *, spent_at: tuple[int, int], **options: Any) -> World:
    """A world whose time is spent while a trial makes a report."""
    world = World(folder, **{"num_trials": 9, **options})
    clock = Clock()
    world.budget = SearchBudget(Search(time_budget=BUDGET_S), clock=clock)
    world.budget.begin()

    def on_report(number: int, index: int) -> None:
        if (number, index) == spent_at:
            clock.now = BUDGET_S

    world.on_report = on_report
    return world


def reports_of(world: World, number: int) -> int:
    return max(world.books.ledger.entries[number].intermediate, default=0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90m", 5400),
        ("2h", 7200),
        ("1d", 86_400),
        ("1h30m", 5400),
        ("1.5 h", 5400),
        ("45s", 45),
        ("600", 600),
        (600, 600),
    ],
)
def test_a_budget_is_a_length_of_time_in_words_or_seconds(text: str | int, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert Search(time_budget=text).time_budget == seconds  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["2 weeks", "h", "-1h", "1h-", 0, -5, "0m"])
def test_what_is_no_length_of_time_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"search\.time_budget must be .*, got"):
        validate_document(Document("a.yaml", {"search": {"time_budget": value}}))


def test_after_the_budget_no_trial_begins_and_those_that_run_can_go_on_in_a_resume(tmp_path: Path) -> None:
    world = make_world(tmp_path, spent_at=(2, 2))
    world.run()
    states = dict(enumerate(world.states()))
    assert states[0] is states[1] is COMPLETE and len(states) < 9
    cut = [number for number, state in states.items() if state is INTERRUPTED]
    assert cut and set(states.values()) == {COMPLETE, INTERRUPTED}
    # The one whose report it was ended there; none made more than one report after it.
    assert reports_of(world, 2) == 2 and not world.running
    for number in cut:
        record = read_record(world.books.paths.trial(f"{number:04d}").record, TrialRecord)
        assert (record.state, record.cause) == (INTERRUPTED, "search.time_budget of 1:40 is spent")
    # The study is told their ends with those of a stopped sweep: a resume goes on with them.
    assert world.books.states().count("RUNNING") >= len(cut)
    assert {entry.number for entry in world.books.ledger.resumable()} == set(cut)
    events = [event for event in read_events(world.books.paths.events) if event["event"] == "budget_spent"]
    assert [event["reason"] for event in events] == ["search.time_budget of 1:40 is spent"]
    assert world.books.ledger.end_reason == "search.time_budget of 1:40 is spent"
    assert world.books.ledger.num_planned == list(states.values()).count(COMPLETE)


def test_a_resume_goes_on_with_those_that_were_cut_and_those_that_never_began_on_a_budget_of_its_own(
    tmp_path: Path,
) -> None:
    first = make_world(tmp_path, spent_at=(2, 2))
    first.run()
    first.books.ledger.interrupt()
    end_interrupted(first.books.study)
    cut = {number for number, state in enumerate(first.states()) if state is INTERRUPTED}

    second = make_world(tmp_path, spent_at=(99, 1))
    second.books.ledger.restore()
    settle_finished(second.books.study, second.books.ledger)
    requeue_interrupted(second.books.study)
    second.searcher = second.books.make_searcher(num_slots=2)
    second.run()
    assert second.states().count(COMPLETE) == 9 and second.books.ledger.end_reason is None
    # And with one that was only being asked for.
    assert cut <= {entry.resumed_from for entry in second.books.ledger.entries.values()}


def test_where_no_trial_is_complete_the_one_that_is_furthest_goes_on_to_its_end(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_slots=3, spent_at=(0, 1), num_trials=20)
    world.gathers = 3
    world.run()
    assert world.states().count(COMPLETE) == 1
    (best,) = [number for number, state in enumerate(world.states()) if state is COMPLETE]
    others = [reports_of(world, number) for number in range(len(world.states())) if number != best]
    assert reports_of(world, best) == NUM_REPORTS and max(others) <= 2


def test_of_those_that_are_as_far_the_best_goes_on_though_it_was_not_known_when_the_budget_was_spent(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path, num_slots=2, spent_at=(0, 1), num_trials=20)
    world.gathers = 3
    spends = world.on_report

    def on_report(number: int, index: int) -> Report | None:
        spends(number, index)
        # The later a trial began, the better it is.
        return Report(f"{number:04d}", index, index == NUM_REPORTS, {"eval_loss": 9.0 - number})

    world.on_report = on_report
    world.run()
    assert world.states() == [INTERRUPTED, INTERRUPTED, COMPLETE]


def test_a_scheduler_stops_nothing_any_more_not_even_the_last_trial(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_slots=2, spent_at=(1, 1), scheduler="asha", reduction_factor=2)
    world.gathers = 2
    world.run()
    assert set(world.states()) == {COMPLETE, INTERRUPTED} and world.states().count(COMPLETE) == 1


def test_where_the_last_trial_fails_another_one_goes_on(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_slots=2, spent_at=(0, 2), num_trials=20)
    world.gathers = 3
    spends = world.on_report
    failed: list[int] = []

    def on_report(number: int, index: int) -> Report | None:
        spends(number, index)
        # The first that is at its third report is the last to go on.
        if index == 3 and not failed:
            failed.append(number)
            return Report(f"{number:04d}", index, True, {}, failure=Failure("diverged", "loss is nan"))
        return None

    world.on_report = on_report
    world.run()
    assert world.states()[failed[0]] is FAILED
    assert COMPLETE in world.states()


def test_paused_trials_wait_for_nothing_once_the_budget_is_spent(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_slots=4, spent_at=(4, 1), scheduler="hyperband")
    world.gathers = 5
    world.run()
    assert world.states().count(COMPLETE) == 1 and not world.running
    assert set(world.states()) <= {COMPLETE, INTERRUPTED, TrialStatus.PRUNED}


def test_a_budget_that_is_not_spent_changes_nothing(tmp_path: Path) -> None:
    world = make_world(tmp_path, spent_at=(99, 1), num_trials=5)
    world.run()
    assert world.states() == [COMPLETE] * 5 and world.books.ledger.end_reason is None


def test_gpu_hours_are_those_since_the_search_began_and_say_how_long_they_last() -> None:
    clock = Clock()
    budget = SearchBudget(Search(gpu_hours=2.0, time_budget="3h"), clock=clock)
    # The executors loaded for a quarter of an hour, after an earlier run of 5 hours.
    budget.note_hours(5.25, num_devices=4)
    budget.begin()
    assert budget.find_spent() is None and budget.seconds_left() == pytest.approx(1800)
    budget.note_hours(7.0, num_devices=1)
    clock.now = 600.0
    assert budget.find_spent() is None and budget.seconds_left() == pytest.approx(900)
    budget.note_hours(7.25, num_devices=1)
    assert budget.find_spent() == "search.gpu_hours of 2 are spent" and budget.seconds_left() == 0
    clock.now = 3 * 3600.0
    assert budget.find_spent() == "search.time_budget of 3:00:00 is spent"


def test_without_a_budget_there_is_no_end_of_it() -> None:
    budget = SearchBudget(Search(), clock=Clock())
    budget.begin()
    budget.note_hours(math.inf, num_devices=1)
    assert not budget.is_limited and budget.find_spent() is None and budget.seconds_left() is None
