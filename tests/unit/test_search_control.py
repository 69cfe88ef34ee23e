"""What is asked of a running search: trials stopped, no new ones, a pause; each noted, and none that can hang it."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.orchestration import control
from qlora_ray.orchestration.control import SearchControl
from qlora_ray.runs import read_events
from qlora_ray.runs.control import ControlAction, take_requests, write_request
from qlora_ray.runs.records import TrialRecord, TrialStatus, read_record
from tests.unit.search_fixtures import NUM_REPORTS, World

COMPLETE, PRUNED = TrialStatus.COMPLETE, TrialStatus.PRUNED


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LOOK_INTERVAL_S", 0.001)


def make_world(folder: Path, **options: Any) -> World:
    world = World(folder, **options)
    world.control = SearchControl(world.books.paths, world.books.ledger)
    return world


def answers(world: World) -> list[tuple[str, str]]:
    """What became of the requests: the event and its reason."""
    events = read_events(world.books.paths.events)
    return [(event["event"], event["reason"]) for event in events if event["event"].startswith("request_")]


async def until(is_so: Callable[[], bool]) -> None:
    """Lets the search go on until something is so."""
    while not is_so():
        await asyncio.sleep(0.001)


def ask_at(world: World, number: int, index: int, *asked: tuple[ControlAction, str | None]) -> None:
    """Has requests written as a trial comes to a report, which it makes when all are answered."""

    async def on_report(at: int, report: int) -> None:
        if (at, report) == (number, index):
            for count, (action, trial) in enumerate(asked, start=1):
                write_request(world.books.paths, action, trial=trial)
                await until(lambda count=count: len(answers(world)) >= count)

    world.on_report = on_report


def test_a_trial_that_is_stopped_ends_as_pruned_with_its_reason_in_books_and_study(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=4)
    world.gathers = 3

    async def on_report(number: int, index: int) -> None:
        if (number, index) == (1, 2):
            write_request(world.books.paths, ControlAction.STOP_TRIAL, trial="0001")
            # It is stopped in here.
            await asyncio.Event().wait()

    world.on_report = on_report
    world.run()
    assert world.states() == [COMPLETE, PRUNED, COMPLETE, COMPLETE]
    record = read_record(world.books.paths.trial("0001").record, TrialRecord)
    assert (record.state, record.cause) == (PRUNED, "stopped by the user")
    assert world.books.states() == ["COMPLETE", "PRUNED", "COMPLETE", "COMPLETE"]
    assert answers(world) == [("request_done", "trial 0001 is stopped, as asked")]
    assert ("leave", 1, 2) in world.log


def test_a_trial_that_is_stopped_before_its_first_step_ends_and_so_does_the_search(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=3)
    stopped: list[int] = []

    class Asker:
        async def follow(self, search: Any) -> None:
            while True:
                for trial, task in search._trial_tasks.items():
                    if not stopped and inspect.getcoroutinestate(task.get_coro()) == inspect.CORO_CREATED:
                        assert search.stop_trial(trial.number, "stopped")
                        stopped.append(trial.number)
                await asyncio.sleep(0)

    world.control = Asker()  # type: ignore[assignment]
    world.run()
    (number,) = stopped
    assert world.states()[number] is PRUNED
    assert len(world.states()) == 3 and not world.running


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median", "none"])
def test_every_scheduler_goes_on_without_a_trial_that_was_stopped_before_its_first_report(
    tmp_path: Path, scheduler: str
) -> None:
    world = make_world(tmp_path, num_trials=6, num_slots=3, scheduler=scheduler)

    async def on_report(number: int, index: int) -> None:
        if (number, index) == (1, 1):
            write_request(world.books.paths, ControlAction.STOP_TRIAL, trial="0001")
            await asyncio.Event().wait()

    world.on_report = on_report
    world.run()
    assert len(world.states()) == 6
    assert world.books.ledger.entries[1].cause == "stopped by the user"
    assert COMPLETE in world.states() and set(world.states()) <= {COMPLETE, PRUNED}


def test_a_trial_that_does_not_run_cannot_be_stopped(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=2, num_slots=0)
    stop = ControlAction.STOP_TRIAL
    ask_at(world, 1, 1, (stop, "0000"), (stop, "0077"), (stop, "x"), (stop, None))
    world.run()
    assert world.states() == [COMPLETE] * 2
    assert answers(world) == [
        ("request_refused", f"trial {trial} does not run") for trial in ("0000", "0077", "x", "?")
    ]


def test_a_sweep_that_is_to_finish_begins_no_more_trials(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=50, num_slots=2)
    ask_at(world, 1, 2, (ControlAction.FINISH, None))
    world.run()
    # Those that ran, and one that was being asked for.
    assert 3 <= len(world.states()) < 50
    assert set(world.states()) == {COMPLETE}
    assert world.books.ledger.num_planned == len(world.states())


def test_a_paused_sweep_begins_no_trial_until_it_is_told_to_continue(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=8, num_slots=1)
    counts: list[int] = []

    async def on_report(number: int, index: int) -> None:
        if (number, index) == (1, 1):
            write_request(world.books.paths, ControlAction.PAUSE)
            await until(lambda: len(answers(world)) == 1)
            counts.append(world.books.ledger.num_begun)
        if index == NUM_REPORTS and answers(world) and not counts[1:]:
            counts.append(world.books.ledger.num_begun)
            write_request(world.books.paths, ControlAction.CONTINUE)

    world.on_report = on_report
    world.run()
    assert world.states() == [COMPLETE] * 8
    # One that was being asked for may still have come.
    assert counts[1] <= counts[0] + 1 < 8
    assert [event for event, _ in answers(world)] == ["request_done"] * 2


def test_a_paused_sweep_that_is_to_finish_ends(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=50, num_slots=1)
    ask_at(world, 0, 1, (ControlAction.PAUSE, None), (ControlAction.FINISH, None))
    world.run()
    assert 1 <= len(world.states()) < 50


def test_a_sweep_that_is_paused_with_its_last_trial_ends(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=2, num_slots=1)
    ask_at(world, 1, 2, (ControlAction.PAUSE, None))
    world.run()
    assert world.states() == [COMPLETE] * 2


def test_a_request_is_taken_once_and_a_broken_one_asks_nothing(tmp_path: Path) -> None:
    paths = World(tmp_path).books.paths
    first = write_request(paths, ControlAction.STOP_TRIAL, trial="0001")
    second = write_request(paths, ControlAction.PAUSE)
    (paths.control / "other.json").write_text('{"action": "rm -rf", "trial": 3}')
    (paths.control / "list.json").write_text("[1]")
    taken = take_requests(paths)
    assert [one.id for one in taken if one.action] == [first.id, second.id]
    assert {one.id for one in taken if not one.action} == {"other", "list"}
    assert list(paths.control.iterdir()) == []
    assert take_requests(paths) == []


def test_a_request_that_a_script_is_still_writing_is_left_for_the_next_look(tmp_path: Path) -> None:
    paths = World(tmp_path).books.paths
    paths.control.mkdir()
    half = paths.control / "half.json"
    half.write_text('{"action": "pau')
    assert take_requests(paths) == [] and half.exists()
    os.utime(half, (0, 0))
    # Nobody writes it any more.
    assert [(one.id, one.action) for one in take_requests(paths)] == [("half", None)]
    half.write_text('{"action": "pau')
    assert take_requests(paths) == []
    half.write_text('{"action": "pause"}')
    assert [(one.id, one.action) for one in take_requests(paths)] == [("half", ControlAction.PAUSE)]


def test_a_request_that_breaks_is_refused_with_its_reason_and_takes_none_of_the_others_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, num_trials=2, num_slots=0)
    paths = world.books.paths

    async def clone(*_arguments: Any) -> str:
        raise OSError("the disk is gone")

    monkeypatch.setattr("qlora_ray.orchestration.search_loop.SearchLoop.clone", clone)

    async def on_report(number: int, index: int) -> None:
        if (number, index) == (0, 1):
            write_request(paths, ControlAction.CLONE, trial="0000", params={"lora.r": 1})
            (paths.control / "mine.json").write_text('{"action": "halt"}')
            write_request(paths, ControlAction.PAUSE)
            write_request(paths, ControlAction.CONTINUE)
            await until(lambda: len(answers(world)) == 4)

    world.on_report = on_report
    world.run()
    assert world.states() == [COMPLETE] * 2
    told = dict.fromkeys(answers(world))
    assert ("request_refused", "clone broke: the disk is gone") in told
    assert [event for event, _ in told] == ["request_refused"] * 2 + ["request_done"] * 2
    assert any("control/mine.json must have an action of stop_trial, finish" in reason for _, reason in told)


def test_the_next_search_of_a_sweep_begins_as_the_one_before_was_asked_to(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=2, num_slots=1)
    ask_at(world, 1, 2, (ControlAction.PAUSE, None))
    world.run()
    control = world.control
    assert control is not None

    class Next:
        is_paused = is_finishing = False

        def set_paused(self, is_paused: bool) -> None:
            self.is_paused = is_paused

        def finish(self) -> None:
            self.is_finishing = True

        def stop_trial(self, number: int, reason: str) -> bool:
            return False

    async def follow(search: Next, *, until_so: Callable[[], bool]) -> None:
        task = asyncio.create_task(control.follow(search))
        await until(until_so)
        task.cancel()

    paused = Next()
    asyncio.run(follow(paused, until_so=lambda: paused.is_paused))
    write_request(world.books.paths, ControlAction.FINISH)
    finishing = Next()
    asyncio.run(follow(finishing, until_so=lambda: finishing.is_finishing))
    last = Next()
    write_request(world.books.paths, ControlAction.STOP_TRIAL, trial="0000")
    asyncio.run(follow(last, until_so=lambda: len(answers(world)) == 3))
    assert not last.is_paused
