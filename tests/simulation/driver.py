"""The driver in one thread: each trial's real coroutine, over calls that take their time, and the sweep's books."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import SweepConfig
from qlora_ray.orchestration.leased_trial import LeasedTrial, TrialTerms
from qlora_ray.orchestration.pool.events import ExecutorDied, LeaseReleased, TrialPreempted
from qlora_ray.orchestration.pool.leases import ANY_DEVICE, Lease, LeaseNeeds
from qlora_ray.orchestration.trial_port import ExecutorGone
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.training.engine import Report, TrialSpec
from tests.simulation.executor import NUM_REPORTS, Poll, SimulatedExecutor
from tests.simulation.study import ENDED, PlainStudy, Study

if TYPE_CHECKING:
    from tests.simulation.pool import SimulatedPool
    from tests.simulation.world import World

CONFIG = SweepConfig.model_validate(
    {
        "training": {"max_samples": 8, "gradient_accumulation_steps": 1},
        "search": {"space": {"lora.r": {"choices": [4, 8]}}, "num_reports": NUM_REPORTS},
        "cluster": {"max_trial_retries": 2, "lease_timeout_s": 60},
    }
)
TERMS = TrialTerms(CONFIG, 8)
# Trials that live at once.
NUM_LIVE = 3


class _Call:
    """What a trial waits for; whoever steps it does `carry` and sends the answer."""

    def __init__(self, carry: Callable[[Callable[[Any], None]], None]) -> None:
        self.carry = carry

    def __await__(self) -> Generator[_Call, Any, Any]:
        return (yield self)


class SimulatedPort:
    """A trial's calls; every one is on its way for a while, and so is its answer."""

    def __init__(self, world: World, pool: SimulatedPool) -> None:
        self._world = world
        self._pool = pool

    async def lease(self, trial_id: str, *, goes_on: bool, needs: LeaseNeeds = ANY_DEVICE) -> Lease:
        """See TrialPort."""
        return await _Call(lambda answer: self._on_its_way(lambda: self._pool.lease(trial_id, goes_on, needs, answer)))

    async def release(self, lease: Lease, *, refused: bool = False) -> None:
        """See TrialPort."""
        await self._of_pool(LeaseReleased(lease.trial_id, lease.number, refused))

    async def end(self, trial_id: str, *, needs_more: str | None = None) -> None:
        """See TrialPort."""

        def end(answer: Callable[[Any], None]) -> None:
            self._pool.end(trial_id, lambda: answer(None), needs_more=needs_more)

        await _Call(lambda answer: self._on_its_way(partial(end, answer)))

    async def report_preempted(self, lease: Lease, reason: str) -> None:
        """See TrialPort."""
        await self._of_pool(TrialPreempted(lease.trial_id, lease.number, reason))

    async def report_lost(self, lease: Lease) -> None:
        """See TrialPort."""
        await self._of_pool(ExecutorDied(lease.seat_id, lease.incarnation, "a trial found it dead"))

    async def admit(self, lease: Lease, spec: TrialSpec) -> None:
        """See TrialPort."""
        world = self._world

        def admit(executor: SimulatedExecutor, answer: Callable[[Any], None]) -> None:
            try:
                executor.admit(spec, lease.number, now=world.now)
            except Exception as error:
                world.after(world.latency(), partial(answer, error))
                return
            world.invariants.check_admission(self._pool, lease, executor)
            world.after(world.latency(), partial(answer, None))

        await self._of_executor(lease, admit)

    async def next_report(self, lease: Lease, trial_id: str, *, timeout_s: float) -> Report | None:
        """See TrialPort."""
        world = self._world

        def ask(executor: SimulatedExecutor, answer: Callable[[Any], None]) -> None:
            def later(value: Any) -> None:
                world.after(world.latency(), partial(answer, value))

            poll = executor.next_report(trial_id, lease.number, now=world.now, answer=later)
            if poll is not None:
                world.after(timeout_s, partial(self._end_poll, executor, poll))

        report: Report | None = await self._of_executor(lease, ask)
        return report

    def _end_poll(self, executor: SimulatedExecutor, poll: Poll) -> None:
        if not executor.is_dead and not executor.is_hung:
            executor.end_poll(poll, now=self._world.now)

    def _of_pool(self, event: Any) -> _Call:
        def carry(answer: Callable[[Any], None]) -> None:
            def arrive() -> None:
                self._pool.handle(event)
                self._world.after(self._world.latency(), partial(answer, None))

            self._on_its_way(arrive)

        return _Call(carry)

    def _of_executor(self, lease: Lease, do: Callable[[SimulatedExecutor, Callable[[Any], None]], None]) -> _Call:
        def carry(answer: Callable[[Any], None]) -> None:
            def lost() -> None:
                self._world.after(self._world.latency(), partial(answer, ExecutorGone("its process died")))

            self._pool.call(
                (lease.seat_id, lease.incarnation), lambda executor: do(executor, answer), lost, is_slow=True
            )

        return _Call(carry)

    def _on_its_way(self, arrive: Callable[[], None]) -> None:
        pool = self._pool
        self._world.after(self._world.latency(), lambda: arrive() if pool.is_alive else None)


class _Process:
    """One trial's coroutine, stepped whenever an answer comes."""

    def __init__(self, driver: SimulatedDriver, number: int, coroutine: Any) -> None:
        self.driver = driver
        self.number = number
        self.is_alive = True
        self.frozen_until = 0.0
        self._coroutine = coroutine
        self._calls = 0

    def step(self, value: Any = None) -> None:
        """Gives the coroutine an answer."""
        world = self.driver.world
        if not self.is_alive:
            return
        if world.now < self.frozen_until:
            world.after(self.frozen_until - world.now, partial(self.step, value))
            return
        try:
            if isinstance(value, Exception):
                call = self._coroutine.throw(value)
            else:
                call = self._coroutine.send(value)
        except StopIteration:
            self.is_alive = False
            self.driver.end_process(self)
            return
        self._calls += 1
        call.carry(partial(self._answer, self._calls))

    def _answer(self, call_number: int, value: Any) -> None:
        assert call_number == self._calls or not self.is_alive, "a call was answered twice"
        self.step(value)

    def kill(self) -> None:
        """It is gone with its driver."""
        self.is_alive = False
        self._coroutine.close()


class SimulatedDriver:
    """Asks for trials, enters their reports, tells the study how they ended; goes on with what another one left.

    Attributes:
        records: How each trial ended, by its number: on disk, so that they outlive the driver.
        study: The study.
        reports: The last report of each trial that was entered, on disk likewise.
        origin: The first number of a trial that went on under other ones.
        sizes: What each trial takes of an executor's memory, by its first number.
    """

    def __init__(self, world: World, num_trials: int) -> None:
        self.world = world
        self.num_trials = num_trials
        self.records: dict[int, str] = {}
        self.study: Study = PlainStudy(num_trials)
        self.reports: dict[int, int] = {}
        self.origin: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.is_alive = False
        self.processes: dict[int, _Process] = {}
        self._pool: SimulatedPool | None = None

    @property
    def told(self) -> dict[int, str]:
        """What the study was told."""
        return self.study.told

    @property
    def is_done(self) -> bool:
        """Whether every trial of the sweep has ended, and the study knows."""
        return (
            sum(state in ENDED for state in self.told.values()) == self.num_trials
            and self.is_alive
            and not self.processes
        )

    def diverges(self, trial_id: str) -> bool:
        """Some trials have no finite loss, whatever number they go on under."""
        return self.origin[int(trial_id)] % 7 == 3

    def size_of(self, trial_id: str) -> int:
        """What a trial takes of an executor's memory, whatever number it goes on under."""
        return self.sizes[self.origin[int(trial_id)]]

    def start(self, pool: SimulatedPool) -> None:
        """Starts, or resumes: what was running is interrupted and goes on under another number."""
        self._pool = pool
        self.is_alive = True
        for number, state in self.records.items():
            if state == "running":
                self.records[number] = "interrupted"
        self.study.resume(self.records)
        self._ask()

    def die(self) -> None:
        """It is killed."""
        self.is_alive = False
        processes, self.processes = self.processes, {}
        for process in processes.values():
            process.kill()

    def end_process(self, process: _Process) -> None:
        """A trial's coroutine has returned."""
        self.processes.pop(process.number, None)
        if self.is_alive:
            self._ask()

    def freeze(self, number: int, seconds: float) -> None:
        """A trial does not get on for a while."""
        self.processes[number].frozen_until = self.world.now + seconds

    def _ask(self) -> None:
        """Starts trials while there are some to be started."""
        while len(self.processes) < NUM_LIVE:
            asked = self.study.ask()
            if asked is None:
                return
            number, earlier = asked
            self.origin[number] = number if earlier is None else self.origin[earlier]
            if earlier is None:
                self.sizes[number] = self.world.draw_size()
            if earlier is not None and trial_id_of(earlier) in self.world.disk:
                self.world.disk[trial_id_of(number)] = self.world.disk.pop(trial_id_of(earlier))
            if earlier is not None:
                self.reports[number] = self.reports.get(earlier, 0)
            self.records[number] = "running"
            process = _Process(self, number, self._train(number))
            self.processes[number] = process
            process.step()

    async def _train(self, number: int) -> None:
        assert self._pool is not None
        world, last_index = self.world, 0
        while True:
            trial = LeasedTrial(
                number,
                {},
                terms=TERMS,
                port=SimulatedPort(world, self._pool),
                last_index=last_index,
                clock=lambda: world.now,
            )
            outcome = None
            while outcome is None:
                report = await trial.next_report()
                outcome = self._enter(number, report)
            if outcome != "paused":
                self._end(number, outcome)
            await trial.leave()
            if outcome != "paused":
                return
            last_index = trial.last_index

    def _enter(self, number: int, report: Report) -> str | None:
        """Enters a report; how the trial ends with it, None if it goes on."""
        if report.failure is not None:
            self.world.invariants.check_failure(number, report)
            # No executor, or no room for now: that says nothing about the trial.
            return "failed" if report.failure.cause in ("diverged", "oom") else "interrupted"
        self.world.invariants.check_report(number, report)
        self.reports[number] = max(report.index, self.reports.get(number, 0))
        if report.is_final:
            return "complete"
        chance = self.world.random.random()
        return "pruned" if chance < 0.1 else "paused" if chance < 0.2 else None

    def _end(self, number: int, state: str) -> None:
        """The record first, then the study: a driver may be killed in between."""
        self.records[number] = state
        self.world.after(self.world.random.random(), partial(self._tell, number, state))

    def _tell(self, number: int, state: str) -> None:
        if not self.is_alive:
            return
        if state != "interrupted":
            self.study.tell(number, state)
            return
        # The search ends when an executor is lost for good; the sweep is resumed.
        self.world.after(1.0, self.world.kill_driver)
