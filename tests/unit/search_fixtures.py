"""A search whose trials need no pool: each makes its reports at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from qlora_ray.orchestration.cloning import Cloner
from qlora_ray.orchestration.control import SearchControl
from qlora_ray.orchestration.leased_trial import LeasedTrial
from qlora_ray.orchestration.pool_events import PoolEvents
from qlora_ray.orchestration.search_budget import SearchBudget
from qlora_ray.orchestration.search_loop import SearchLoop
from qlora_ray.orchestration.searcher import AskedTrial
from qlora_ray.orchestration.stopping import SearchStop
from qlora_ray.runs.records import TrialStatus
from qlora_ray.training.engine import Report
from tests.unit.orchestration_fixtures import Books

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
        self.control: SearchControl | None = None
        self.budget: SearchBudget | None = None

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
            control=self.control,
            budget=self.budget,
            cloner=Cloner(
                self.books.config,
                space=self.books.space,
                paths=self.books.paths,
                ledger=self.books.ledger,
                searcher=self.searcher,
            ),
        )
        asyncio.run(asyncio.wait_for(loop.run(), HANG_S))

    def states(self) -> list[TrialStatus]:
        """The trials' states in the books."""
        return [entry.state for entry in self.books.ledger.entries.values()]


class PlayedTrial:
    """Makes its reports at once; its loss is its number and falls with every report."""

    lease: Any = None
    waited_s = 0.0
    num_retries = 0

    def __init__(self, world: World, asked: AskedTrial) -> None:
        self._world, self._number, self._index = world, asked.number, 0

    async def next_report(self) -> Report:
        self._index += 1
        world = self._world
        self.lease = SimpleNamespace(seat_id=0, facts={})
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
        self.lease = None
        if self._number in self._world.running:
            self._world.running.discard(self._number)
            self._world.log.append(("leave", self._number, self._index))
