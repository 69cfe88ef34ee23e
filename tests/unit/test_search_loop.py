"""The search's loop over trials whose losses are a table: who runs when, how each ends, and how the search does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from qlora_ray.errors import PoolLost
from qlora_ray.orchestration.leased_trial import LeasedTrial
from qlora_ray.orchestration.pool_events import PoolEvents
from qlora_ray.orchestration.search_loop import SearchLoop
from qlora_ray.orchestration.searcher import AskedTrial
from qlora_ray.orchestration.stopping import SearchStop
from qlora_ray.runs.records import TrialStatus
from qlora_ray.training.engine import Failure, Report
from tests.unit.orchestration_fixtures import Books, remote

NUM_REPORTS = 4
# A search that has not ended by then never will.
HANG_S = 30.0


class World:
    """A sweep whose trials need no pool.

    Attributes:
        log: `(what, trial number, report)` in order: a report that was asked for, or that a slot was given back.
        gathers: Trials that all wait for each other before their first report: as many as run at once.
        on_report: Called before each report; may wait, raise, or return a report of its own.
    """

    def __init__(self, folder: Path, *, num_slots: int = 2, **search: Any) -> None:
        self.books = Books(folder, **{"num_reports": NUM_REPORTS, "scheduler": "none", **search})
        self.searcher = self.books.make_searcher(num_slots=num_slots)
        self.stop = SearchStop()
        self.log: list[tuple[str, int, int]] = []
        self.on_report: Callable[[int, int], Any] = lambda number, index: None
        self.running: set[int] = set()
        self.gathers = 1
        self.gathered = asyncio.Event()
        self.most_running = 0

    def run(self, pool: Any = None) -> None:
        """Runs the search to its end; `pool` tells its events."""
        events = pool and PoolEvents(pool, ledger=self.books.ledger)
        if events:
            events.follow(self.searcher, self.stop)
        loop = SearchLoop(
            self.searcher,
            ledger=self.books.ledger,
            search=self.books.config.search,
            make_trial=lambda asked: cast(LeasedTrial, PlayedTrial(self, asked)),
            events=events,
            stop=self.stop,
        )
        asyncio.run(asyncio.wait_for(loop.run(), HANG_S))

    def states(self) -> list[TrialStatus]:
        """The trials' states in the books."""
        return [entry.state for entry in self.books.ledger.entries.values()]


class PlayedTrial:
    """Makes its reports at once; its loss is its number and falls with every report."""

    lease = None
    waited_s = 0.0
    num_retries = 0

    def __init__(self, world: World, asked: AskedTrial) -> None:
        self._world, self._number, self._index = world, asked.number, 0

    async def next_report(self) -> Report:
        self._index += 1
        world = self._world
        world.running.add(self._number)
        world.most_running = max(world.most_running, len(world.running))
        world.log.append(("report", self._number, self._index))
        if len(world.running) >= world.gathers:
            world.gathered.set()
        await world.gathered.wait()
        answer = world.on_report(self._number, self._index)
        if asyncio.iscoroutine(answer):
            answer = await answer
        await asyncio.sleep(0)
        loss = self._number + 1 / self._index
        is_final = self._index == NUM_REPORTS
        return answer or Report(f"{self._number:04d}", self._index, is_final, {"eval_loss": loss})

    async def leave(self) -> None:
        if self._number in self._world.running:
            self._world.running.discard(self._number)
            self._world.log.append(("leave", self._number, self._index))


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
