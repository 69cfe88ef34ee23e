"""The search's loop over trials whose losses are a table: who runs when, how each ends, and how the search does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.errors import PoolLost, RunError
from qlora_ray.runs.records import TrialStatus
from qlora_ray.training.engine import Failure, Report
from tests.unit.orchestration_fixtures import remote
from tests.unit.search_fixtures import World


def test_all_trials_run_in_order_and_as_many_at_once_as_there_are_slots_and_one(tmp_path: Path) -> None:
    world = World(tmp_path, num_trials=7)
    world.gathers = 3
    world.run()
    assert world.states() == [TrialStatus.COMPLETE] * 7
    assert world.books.states() == ["COMPLETE"] * 7
    assert [trial.value for trial in world.books.trials()] == [number + 0.25 for number in range(7)]
    assert world.most_running == 3 and not world.running
    first = [number for what, number, index in world.log if (what, index) == ("report", 1)]
    assert first == sorted(first)


def test_an_executor_that_is_ready_later_gets_trials_though_those_that_run_make_no_report(tmp_path: Path) -> None:
    world = World(tmp_path, num_slots=1, num_trials=5)
    # They wait for each other: none makes a report before four of them run.
    world.gathers = 4

    class Pool:
        def __init__(self) -> None:
            self.next_events = remote(self._next_events)

        async def _next_events(self, seen: int, timeout_s: float) -> list[dict[str, Any]]:
            if seen:
                # The last look waits for nothing.
                await (asyncio.Event().wait() if timeout_s else asyncio.sleep(0))
                return []
            while len(world.running) < 2:
                await asyncio.sleep(0)
            return [{"event": "executor_ready", "reason": "", "executor": 1, "ready_slots": 3, "num_left": 2}]

    world.run(Pool())
    assert world.states() == [TrialStatus.COMPLETE] * 5
    assert world.most_running == 4


def test_weak_trials_are_stopped_and_give_their_slots_back(tmp_path: Path) -> None:
    world = World(tmp_path, num_trials=6, scheduler="asha", reduction_factor=2)
    world.run()
    assert world.states()[0] is TrialStatus.COMPLETE and TrialStatus.PRUNED in world.states()
    assert set(world.books.states()) == {"COMPLETE", "PRUNED"}
    assert not world.running


def test_paused_trials_hold_no_slot_and_all_of_them_end(tmp_path: Path) -> None:
    world = World(tmp_path, num_slots=4, num_trials=9, scheduler="hyperband")
    world.gathers = 5  # a bracket of two, and one of three that is halved at the first report
    world.run()
    assert len(world.states()) == 9 and set(world.states()) == {TrialStatus.COMPLETE, TrialStatus.PRUNED}
    assert ("leave", 3, 1) in world.log and not world.running
    # A trial that was paused goes on with the report after the one that it was paused at.
    for number in range(9):
        reports = [index for what, trial, index in world.log if (what, trial) == ("report", number)]
        assert reports == list(range(1, len(reports) + 1))


def test_a_trial_that_fails_ends_for_itself(tmp_path: Path) -> None:
    world = World(tmp_path, num_trials=3)
    diverged = Report("0001", 2, True, {}, failure=Failure("diverged", "loss is nan"))
    world.on_report = lambda number, index: diverged if (number, index) == (1, 2) else None
    world.run()
    assert world.states() == [TrialStatus.COMPLETE, TrialStatus.FAILED, TrialStatus.COMPLETE]
    assert world.books.trials()[1].user_attrs["cause"] == "diverged"


def test_a_stop_ends_the_search_though_every_trial_waits(tmp_path: Path) -> None:
    world = World(tmp_path, num_trials=3)

    async def wait_forever() -> None:
        world.books.ledger.is_stopping = True
        world.stop.request("the sweep was stopped")
        await asyncio.Event().wait()

    world.on_report = lambda number, index: wait_forever() if (number, index) == (1, 2) else None
    world.run()
    assert TrialStatus.RUNNING in world.states() and TrialStatus.FAILED not in world.states()
    assert "PRUNED" not in world.books.states() and "FAIL" not in world.books.states()


def test_the_pools_end_ends_the_search_and_fails_no_trial(tmp_path: Path) -> None:
    world = World(tmp_path, num_trials=5)

    def lose(number: int, index: int) -> None:
        if (number, index) == (1, 2):
            raise PoolLost("the pool is gone: its node died")

    world.on_report = lose
    with pytest.raises(PoolLost, match="its node died"):
        world.run()
    world.books.ledger.interrupt()
    assert TrialStatus.INTERRUPTED in world.states() and TrialStatus.FAILED not in world.states()


def test_a_search_that_lost_its_last_executor_asks_for_no_more(tmp_path: Path) -> None:
    world = World(tmp_path, num_trials=9, num_slots=1)
    lost = Report("0000", 0, True, {}, failure=Failure("lost", "no executor is left"))
    world.on_report = lambda number, index: lost
    world.run()
    assert set(world.states()) == {TrialStatus.INTERRUPTED} and len(world.states()) == 2


def test_a_full_disk_of_an_executor_ends_the_search_and_fails_no_trial(tmp_path: Path) -> None:
    world = World(tmp_path, num_trials=6)
    full = Report("0001", 2, True, {}, failure=Failure("disk_full", "trials/0001: No space left on device"))
    world.on_report = lambda number, index: full if (number, index) == (1, 2) else None
    with pytest.raises(RunError, match=r"^trials/0001: No space left on device$"):
        world.run()
    # Nothing is told of it, and nothing is begun: a resume goes on with what runs.
    assert TrialStatus.FAILED not in world.states() and len(world.states()) < 6
    assert world.books.states()[1] == "RUNNING"
