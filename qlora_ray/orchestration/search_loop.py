"""The search: one coroutine per trial, Tune's scheduler over their reports, and the study asked for the next ones."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from qlora_ray.config.schema import Search
from qlora_ray.errors import RunError
from qlora_ray.orchestration.cloning import Cloner, CloneRefused, fail_restarted
from qlora_ray.orchestration.control import SearchControl
from qlora_ray.orchestration.leased_trial import LeasedTrial, TrialTerms
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.pool_events import PoolEvents
from qlora_ray.orchestration.schedulers import TIME_ATTRIBUTE, make_scheduler
from qlora_ray.orchestration.scheduling import OBJECTIVE, ScheduledTrial, Scheduling
from qlora_ray.orchestration.search_budget import BudgetEnd, SearchBudget
from qlora_ray.orchestration.searcher import AskedTrial, StudySearcher
from qlora_ray.orchestration.stopping import SearchStop
from qlora_ray.orchestration.trial_entry import TrialResult
from qlora_ray.orchestration.trial_port import RayTrialPort

TrialMaker = Callable[[AskedTrial], LeasedTrial]
# How often it is looked whether the budget is spent.
LOOK_INTERVAL_S = 1.0


class SearchLoop:
    """Runs trials until all have ended or a stop is asked for. Everything but the study is on one event loop.

    As many trials run as there are slots, and one more waits for a slot, so that none stays empty while the study is
    asked.

    Args:
        searcher: Asks the study, and tells it.
        ledger: The books.
        search: The config section `search`: the scheduler.
        make_trial: Makes a trial's way through leases.
        events: Reads what happens in the pool; None where there is no pool.
        stop: Ends the search.
        control: Has the search do what the user asks; None: nobody asks.
        cloner: Makes the clones that the user asks for; None: trials cannot be cloned here.
        budget: What the search may take; None: whatever it takes.
    """

    def __init__(
        self,
        searcher: StudySearcher,
        *,
        ledger: Ledger,
        search: Search,
        make_trial: TrialMaker,
        events: PoolEvents | None,
        stop: SearchStop,
        control: SearchControl | None = None,
        cloner: Cloner | None = None,
        budget: SearchBudget | None = None,
    ) -> None:
        self._searcher = searcher
        self._ledger = ledger
        self._scheduling = Scheduling(make_scheduler(search), mode=ledger.mode, on_changed=self._wake)
        self._make_trial = make_trial
        self._events = events
        self._stop = stop
        self._control = control
        self._cloner = cloner
        self._budget = budget if budget is not None and budget.is_limited else None
        self._end: BudgetEnd | None = None
        self._num_cloning = 0
        self._is_paused = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._trial_tasks: dict[ScheduledTrial, asyncio.Task[None]] = {}
        self._leased: dict[ScheduledTrial, LeasedTrial] = {}
        self._paused: dict[ScheduledTrial, asyncio.Event] = {}
        self._asked: dict[ScheduledTrial, AskedTrial] = {}
        self._asking: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    async def run(self) -> None:
        """Runs the search to its end; what came of it is in the ledger and the study.

        Trials that a stop cuts off are left open in both.

        Raises:
            PoolLost: If the pool is gone.
            RunError: If a disk is full, the driver's or that of an executor; its trial stays open in the books, too.
        """
        loop = asyncio.get_running_loop()
        # Asked for by a signal handler: only this call wakes a loop that waits.
        self._stop.listen(lambda: loop.call_soon_threadsafe(self._changed.set))
        reading = None
        if self._events is not None:
            # An executor that is ready has room at once, however long the trials on the others take to their reports.
            self._events.listen(self._changed.set)
            reading = self._spawn(self._events.read())
        if self._control is not None:
            self._spawn(self._control.follow(self))
        if self._budget is not None:
            self._spawn(self._look_regularly())
        try:
            while not self._stop.is_requested and self._failure is None:
                self._heed_budget()
                if not self._is_paused and self._end is None:
                    self._start_trials()
                if self._is_done():
                    break
                await self._changed.wait()
                self._changed.clear()
        finally:
            self._stop.listen(None)
            await self._end_tasks(reading)
            self._searcher.finish()
        if self._failure is not None:
            raise self._failure

    def _is_done(self) -> bool:
        """Whether nothing runs, and nothing will."""
        if self._trial_tasks or self._asking is not None or self._num_cloning:
            return False
        # What was to begin would have begun by now.
        return not self._is_paused or not (self._searcher.has_more() or self._paused or self._asked)

    def stop_trial(self, number: int, reason: str) -> bool:
        """Ends a trial as pruned, wherever it is; False if it does not run.

        Args:
            number: The trial's number.
            reason: Why, as its record has it.
        """
        trial = self._scheduling.find(number)
        if trial is None:
            return False
        self._ledger.entries[number].stopped_by = reason
        self._scheduling.remove(trial)
        if self._asked.pop(trial, None) is not None:
            # Nothing has begun it.
            self._searcher.close(number)
        self._changed.set()
        return True

    async def clone(self, number: int, changes: Mapping[str, Any]) -> str:
        """Has a copy of a trial go on from its last state with other values; returns the copy's id.

        Args:
            number: The trial's number.
            changes: The other values, by config path.

        Raises:
            CloneRefused: If it cannot be.
        """
        if self._cloner is None:
            raise CloneRefused("the search has ended, and trials with new seeds are not cloned")
        if self._ledger.is_finishing or self._ledger.is_stopping:
            raise CloneRefused("the sweep begins no more trials")
        # The search does not end meanwhile.
        self._num_cloning += 1
        try:
            asked = await self._cloner.make(number, changes)
            self._ledger.num_planned += 1
            self._add(asked)
        finally:
            self._num_cloning -= 1
            self._changed.set()
        return asked.trial_id

    def finish(self) -> None:
        """Asks the study for no more trials; those that there are go on to their ends."""
        self._ledger.is_finishing = True
        self._searcher.num_left = 0
        # One that is just being asked for is the last.
        self._ledger.num_planned = self._ledger.num_begun + (self._asking is not None)
        self.set_paused(False)

    def set_paused(self, is_paused: bool) -> None:
        """Begins no trial, and lets no paused one go on, while it is paused; those that run go on."""
        self._is_paused = is_paused
        self._changed.set()

    def _start_trials(self) -> None:
        """Starts what the scheduler chooses, and has the study asked for one more where there is room."""
        while trial := self._scheduling.choose():
            if trial in self._asked:
                self._trial_tasks[trial] = self._spawn(self._run_trial(trial, self._asked.pop(trial)))
        has_room = self._scheduling.num_live <= self._searcher.num_slots
        if has_room and self._asking is None and self._searcher.has_more():
            self._asking = self._spawn(self._ask())
        if self._asking is None and self._scheduling.num_live == 0:
            # A scheduler that has paused all there is and wants none of it: they will not go on.
            for trial in list(self._paused):
                self._scheduling.stop_trial(trial)

    async def _ask(self) -> None:
        asked = await asyncio.shield(asyncio.wrap_future(self._searcher.ask()))
        self._asking = None
        if self._stop.is_requested or self._end is not None:
            # Nothing of it is in the books: a resume queues it again.
            return
        self._add(asked)

    def _add(self, asked: AskedTrial) -> None:
        self._searcher.open(asked)
        trial = ScheduledTrial(asked.number, asked.params)
        self._asked[trial] = asked
        self._scheduling.add(trial)

    async def _run_trial(self, trial: ScheduledTrial, asked: AskedTrial) -> None:
        leased = self._leased[trial] = self._make_trial(asked)
        try:
            while not trial.is_ended:
                try:
                    await self._report(trial, leased)
                except asyncio.CancelledError:
                    # By the scheduler, in another's turn, or because the search ends.
                    if not trial.is_ended:
                        raise
            # The record before all that follows from it: the study, and whoever gets the slot.
            self._searcher.close(trial.number)
            self._changed.set()
            await leased.leave()
        finally:
            del self._trial_tasks[trial], self._leased[trial]

    async def _report(self, trial: ScheduledTrial, leased: LeasedTrial) -> None:
        """Brings a trial to its next report and has it judged.

        Returns when the trial is to go on or has ended; a paused one waits for that here, without a slot.
        """
        report = fail_restarted(await leased.next_report(), self._ledger.entries[trial.number])
        if report.failure is not None and report.failure.cause == "disk_full":
            raise RunError(report.failure.message)
        lease = leased.lease
        result = TrialResult(
            trial.number,
            report,
            executor=lease.seat_id if lease else None,
            executor_facts=lease.facts if lease else None,
            waited_s=leased.waited_s,
            num_retries=leased.num_retries,
        )
        self._searcher.enter_report(result)
        has_ended = report.is_final or report.failure is not None
        if self._end is not None:
            # Its scheduler is asked nothing more.
            await self._end_or_wait(trial, leased, has_ended=has_ended)
            return
        origin = self._ledger.entries[trial.number].clone_of
        if origin is not None and report.failure is None and report.index <= origin.at:
            # What it has from the trial that it is a copy of was judged there.
            return
        self._scheduling.judge(
            trial,
            {
                TIME_ATTRIBUTE: report.index,
                # What a scheduler of the user's own may count by.
                "training_iteration": report.index,
                "time_total_s": self._ledger.entries[trial.number].train_s,
                OBJECTIVE: self._searcher.objective_of(report),
                "trial_id": trial.trial_id,
                "done": has_ended,
            },
        )
        self._changed.set()
        if not trial.is_live and not trial.is_ended:
            await self._wait_paused(trial, leased)

    async def _wait_paused(self, trial: ScheduledTrial, leased: LeasedTrial) -> None:
        going_on = self._paused[trial] = asyncio.Event()
        try:
            await leased.leave()
            await going_on.wait()
        finally:
            del self._paused[trial]

    def _wake(self, trial: ScheduledTrial) -> None:
        """A paused trial goes on or has ended; one that is stopped while it trains is taken off its executor."""
        if trial in self._paused:
            self._paused[trial].set()
        elif trial.is_ended and trial in self._trial_tasks:
            task = self._trial_tasks[trial]
            way = task.get_coro()
            # One that has not taken its first step would never take any, and stay open; it sees that it has ended.
            is_new = inspect.iscoroutine(way) and inspect.getcoroutinestate(way) == inspect.CORO_CREATED
            if not is_new and task is not asyncio.current_task():
                task.cancel()

    def _heed_budget(self) -> None:
        """Once the budget is spent: no new trial, and those that train end at their next report, as interrupted."""
        if self._end is None:
            reason = None if self._budget is None else self._budget.find_spent()
            has_work = self._trial_tasks or self._asked or self._searcher.has_more()
            # Where the first trial is about to begin, there would be none.
            if reason is None or not has_work or not (self._trial_tasks or self._ledger.best):
                return
            self.finish()
            self._ledger.num_planned = self._ledger.num_begun
            self._ledger.end_reason = reason
            self._end = BudgetEnd(reason)
            self._ledger.note("budget_spent", reason=reason, line=f"{reason}: {self._end.describe(self._ledger)}")
        last = self._end.choose_last(self._trial_tasks, self._ledger)
        if last in self._paused:
            self._scheduling.go_on(last)
        # Those that wait at a report would take the last one's place.
        idle = [trial for trial, leased in self._leased.items() if leased.lease is None and trial not in self._paused]
        for trial in [*self._asked, *idle, *(self._paused if last is None else ())]:
            if trial is not last and not trial.is_ended:
                self._cut(trial, self._end.reason)

    async def _end_or_wait(self, trial: ScheduledTrial, leased: LeasedTrial, *, has_ended: bool) -> None:
        assert self._end is not None
        if has_ended:
            self._scheduling.drop(trial)
        elif self._ledger.best is not None:
            self._cut(trial, self._end.reason)
        elif not self._end.goes_on(trial, self._ledger):
            self._scheduling.pause_trial(trial)
            self._changed.set()
            await self._wait_paused(trial, leased)

    def _cut(self, trial: ScheduledTrial, reason: str) -> None:
        """Ends a trial as interrupted, to go on in a resume."""
        self._ledger.entries[trial.number].cut_by = reason
        self._ledger.num_planned -= 1
        self._scheduling.drop(trial)
        if self._asked.pop(trial, None) is not None:
            self._searcher.close(trial.number)
        self._changed.set()

    async def _look_regularly(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            self._changed.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._end_task)
        return task

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
        self._changed.set()

    async def _end_tasks(self, reading: asyncio.Task[None] | None) -> None:
        """Cancels what still runs. An ask goes on to its end: the study is not left in the middle of one."""
        for task in self._tasks:
            if task is not self._asking:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._events is not None and self._failure is None:
            await self._events.read_rest()


def run_trials(
    terms: TrialTerms,
    *,
    searcher: StudySearcher,
    ledger: Ledger,
    pool: Any,
    stop: SearchStop,
    events: PoolEvents | None = None,
    control: SearchControl | None = None,
    cloner: Cloner | None = None,
    budget: SearchBudget | None = None,
) -> None:
    """Runs the search over the pool's executors to its end, on an event loop of its own in this thread.

    Args:
        terms: What each trial is told.
        searcher: Asks the study for settings.
        ledger: The books.
        pool: The pool's actor.
        stop: Ends the search.
        events: Reads what happens in the pool; None: from the pool's beginning.
        control: Has the search do what the user asks.
        cloner: Makes the clones that the user asks for; None: trials cannot be cloned here.
        budget: What the search may take; None: whatever it takes.

    Raises:
        PoolLost: If the pool is gone.
    """
    port = RayTrialPort(pool)
    events = events or PoolEvents(pool, ledger=ledger)
    events.follow(searcher, stop)
    loop = SearchLoop(
        searcher,
        ledger=ledger,
        search=terms.config.search,
        make_trial=lambda asked: LeasedTrial(asked.number, asked.params, terms=terms, port=port),
        events=events,
        stop=stop,
        control=control,
        cloner=cloner,
        budget=budget,
    )
    try:
        asyncio.run(loop.run())
    finally:
        events.follow(None, None)
