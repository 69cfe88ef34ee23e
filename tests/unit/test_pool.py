"""What the pool decides, without Ray: who gets a slot, what a lost executor costs, and what the driver is told."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayError

from qlora_ray.errors import NoExecutors
from qlora_ray.orchestration.executor.launcher import ExecutorSpec
from qlora_ray.orchestration.pool import MAX_RESTARTS, Lease, Pool

LEASE_TIMEOUT_S = 60.0


def story(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is one run of an event loop."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class FakeExecutor:
    """An executor that is ready, changes its slots and dies when the test says so."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.admitted: list[str] = []
        self.evicted: list[str] = []
        self.is_gone = False
        self._news: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue()
        for name in ("describe", "wait_change", "trials", "evict"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    def be_ready(self) -> None:
        """`describe` answers."""
        self._news.put_nowait(self._facts())

    def have_slots(self, slots: int) -> None:
        """Its slots are others from now on."""
        self.slots = slots
        self._news.put_nowait({**self._facts(), "slots_reason": "out of memory"})

    def die(self, error: Exception | None = None) -> None:
        """The call under way ends with Ray's error."""
        self.is_gone = True
        self._news.put_nowait(error or RayActorError())

    def _facts(self) -> dict[str, Any]:
        return {"device": "fake", "precision_reason": "none", "hostname": "here", "slots": self.slots, "version": 0}

    async def _describe(self) -> dict[str, Any]:
        news = await self._news.get()
        if isinstance(news, Exception):
            raise news
        return news

    async def _wait_change(self, seen_version: int) -> dict[str, Any]:
        return await self._describe()

    async def _trials(self) -> list[str]:
        if self.is_gone:
            raise RayActorError
        return self.admitted

    async def _evict(self, trial_id: str) -> None:
        if self.is_gone:
            raise RayActorError
        self.evicted.append(trial_id)


class Stage:
    """A pool over fake executors, and its clock. Also the pool's launcher."""

    def __init__(self, *slots: int, max_slots: int | None = None) -> None:
        self.now = 0.0
        self.started: list[FakeExecutor] = []
        self.killed: list[FakeExecutor] = []
        # Placements are the launcher's alone: these are the numbers of slots.
        specs: list[Any] = [ExecutorSpec(number, "node") for number in slots]  # type: ignore[arg-type]
        self.pool = Pool(self, specs, lease_timeout_s=LEASE_TIMEOUT_S, max_slots=max_slots, clock=lambda: self.now)

    def start(self, spec: Any) -> FakeExecutor:
        """See Launcher."""
        self.started.append(FakeExecutor(spec.placement))
        return self.started[-1]

    def kill(self, executor: FakeExecutor) -> None:
        """See Launcher."""
        self.killed.append(executor)

    async def open(self) -> Stage:
        """Starts the pool, and waits until all of its executors are ready."""
        await self.pool.start()
        for executor in self.started:
            executor.be_ready()
        await self.until("executor_ready", len(self.started))
        return self

    async def events(self, name: str) -> list[dict[str, Any]]:
        """All events of a name so far."""
        return [event for event in await self.pool.next_events(0, 0) if event["event"] == name]

    async def until(self, name: str, count: int = 1) -> dict[str, Any]:
        """Waits for the `count`-th event of a name."""
        while len(found := await self.events(name)) < count:
            seen = len(await self.pool.next_events(0, 0))
            await self.pool.next_events(seen, 3600)  # one that never comes fails by the test's own limit
        return found[count - 1]

    async def ask(self, trial_id: str, *, goes_on: bool = False) -> asyncio.Task[Lease]:
        """Asks for a slot, and returns once the request is in the queue or granted."""
        asking = asyncio.create_task(self.pool.lease(trial_id, goes_on=goes_on))
        await asyncio.sleep(0)
        return asking

    async def lose(self, number: int = -1, error: Exception | None = None) -> None:
        """Lets an executor die, and waits until the pool knows."""
        before = len(await self.events("executor_lost")) + len(await self.events("executor_failed"))
        self.started[number].die(error)
        while len(await self.events("executor_lost")) + len(await self.events("executor_failed")) == before:
            await self.pool.next_events(len(await self.pool.next_events(0, 0)), 3600)


@story
async def test_slots_are_leased_first_come_first_served_and_to_those_that_go_on_before_all_others() -> None:
    stage = await Stage(1).open()
    await stage.pool.lease("0000")
    new, other, going_on = await stage.ask("0001"), await stage.ask("0002"), await stage.ask("0003", goes_on=True)
    for trial_id in ("0000", "0003", "0001"):
        await stage.pool.release(trial_id)
    await asyncio.gather(new, other, going_on)
    assert [event["trial"] for event in await stage.events("trial_leased")] == ["0000", "0003", "0001", "0002"]


@story
async def test_nobody_gets_a_slot_of_an_executor_that_is_not_ready() -> None:
    stage = Stage(1)
    await stage.pool.start()
    asking = await stage.ask("0000")
    assert await stage.pool.next_events(0, 0) == []
    stage.started[0].be_ready()
    assert (await asking).executor is stage.started[0]


@story
async def test_leases_are_spread_by_the_share_of_slots_that_is_held() -> None:
    stage = await Stage(2, 4).open()
    leases = [await stage.pool.lease(f"{number:04d}") for number in range(6)]
    assert [lease.executor_index for lease in leases] == [0, 1, 1, 0, 1, 1]


@story
async def test_no_more_leases_are_out_than_max_slots() -> None:
    stage = await Stage(2, 2, max_slots=3).open()
    for number in range(3):
        await stage.pool.lease(f"{number:04d}")
    waiting = await stage.ask("0003")
    assert not waiting.done()
    assert (await stage.events("executor_ready"))[-1]["ready_slots"] == 3
    await stage.pool.release("0001")
    await waiting


@story
async def test_a_trial_that_asks_twice_has_one_lease() -> None:
    stage = await Stage(2).open()
    assert await stage.pool.lease("0000") is await stage.pool.lease("0000")


@story
async def test_a_trial_that_leaves_the_queue_takes_no_slot() -> None:
    stage = await Stage(1).open()
    await stage.pool.lease("0000")
    gone, waiting = await stage.ask("0001"), await stage.ask("0002")
    await stage.pool.release("0001")
    await stage.pool.release("0000")
    await waiting
    assert gone.cancelled()


@story
async def test_a_lost_executor_is_killed_and_replaced_and_its_trials_lose_their_slots() -> None:
    stage = await Stage(1, 1).open()
    first, _ = [await stage.pool.lease(trial_id) for trial_id in ("0000", "0001")]
    await stage.lose(0)
    assert stage.killed == [stage.started[0]]
    assert [event["trial"] for event in await stage.events("trial_released")] == ["0000"]
    assert (await stage.until("executor_lost"))["ready_slots"] == 1
    waiting = await stage.ask("0000", goes_on=True)
    stage.started[2].be_ready()
    again = await waiting
    assert (again.executor_index, again.generation) == (0, first.generation + 1)


@story
async def test_a_trial_that_finds_its_executor_dead_says_so_once() -> None:
    stage = await Stage(1).open()
    lease = await stage.pool.lease("0000")
    for _ in range(2):
        await stage.pool.report_lost(lease.executor_index, lease.generation)
    assert (len(stage.started), len(await stage.events("executor_lost"))) == (2, 1)


@story
async def test_an_executor_that_dies_too_often_is_given_up_and_all_who_wait_are_told() -> None:
    stage = await Stage(1).open()
    for count in range(MAX_RESTARTS):
        await stage.lose()
        stage.started[-1].be_ready()
        await stage.until("executor_ready", count + 2)
    await stage.pool.lease("0000")
    waiting = await stage.ask("0001")
    await stage.lose()
    with pytest.raises(NoExecutors, match="no executor is left"):
        await waiting
    assert len(stage.started) == 1 + MAX_RESTARTS
    assert (await stage.until("executor_failed"))["num_failed"] == 1
    with pytest.raises(NoExecutors):
        await stage.pool.wait_ready()


@story
async def test_a_start_that_dies_gets_one_more_try() -> None:
    stage = Stage(1)
    await stage.pool.start()
    ready = asyncio.create_task(stage.pool.wait_ready())
    await stage.lose()
    await stage.lose()
    with pytest.raises(NoExecutors):
        await ready
    assert len(stage.started) == 2


@story
async def test_an_error_of_ours_would_come_again_and_gets_no_other_try() -> None:
    stage = Stage(1)
    await stage.pool.start()
    await stage.lose(error=RayError("Traceback ...\nqlora_ray.errors.ModelError: no-such-base cannot be loaded"))
    with pytest.raises(NoExecutors, match=r"^no-such-base cannot be loaded$"):
        await stage.pool.wait_ready()
    assert len(stage.started) == 1


@story
async def test_the_others_go_on_where_one_executor_is_given_up() -> None:
    stage = await Stage(1, 1).open()
    await stage.lose(0, RayError("qlora_ray.errors.PlacementError: another device"))
    assert (await stage.until("executor_failed"))["ready_slots"] == 1
    assert (await stage.pool.lease("0000")).executor_index == 1
    assert [executor for executor, _ in await stage.pool.ready_executors()] == [stage.started[1]]


@story
async def test_fewer_slots_are_told_and_no_more_trials_come_than_there_are() -> None:
    stage = await Stage(2).open()
    await stage.pool.lease("0000")
    stage.started[0].have_slots(1)
    changed = await stage.until("slots_changed")
    assert (changed["slots"], changed["ready_slots"], changed["reason"]) == (1, 1, "out of memory")
    waiting = await stage.ask("0001")
    assert not waiting.done()
    stage.started[0].have_slots(2)
    await waiting


@story
async def test_a_preempted_trial_gives_its_slot_back_and_the_driver_is_told_why() -> None:
    stage = await Stage(1).open()
    await stage.pool.lease("0000")
    waiting = await stage.ask("0001")
    await stage.pool.report_preempted("0000", "out of memory with 3 trials")
    await waiting
    names = [event["event"] for event in await stage.pool.next_events(1, 0)]
    assert names == ["trial_leased", "trial_preempted", "trial_released", "trial_leased"]
    preempted = await stage.until("trial_preempted")
    assert (preempted["trial"], preempted["executor"]) == ("0000", 0)
    assert preempted["reason"] == "out of memory with 3 trials"


@story
async def test_a_trial_is_ended_where_it_is_also_where_that_is_gone() -> None:
    stage = await Stage(2).open()
    for trial_id in ("0000", "0001"):
        await stage.pool.lease(trial_id)
    await stage.pool.end("0000")
    assert stage.started[0].evicted == ["0000"]
    stage.started[0].is_gone = True
    await stage.pool.end("0001")
    assert [event["trial"] for event in await stage.events("trial_released")] == ["0000", "0001"]


@story
async def test_an_old_lease_whose_trial_never_came_is_freed() -> None:
    stage = await Stage(3).open()
    for trial_id in ("0000", "0001"):
        await stage.pool.lease(trial_id)
    stage.now = LEASE_TIMEOUT_S
    await stage.pool.lease("0002")
    stage.started[0].admitted = ["0001"]
    await stage.pool.free_stale_leases()
    # Trial 0001 is there, and trial 0002 may still come.
    assert [event["trial"] for event in await stage.events("trial_released")] == ["0000"]


@story
async def test_leases_of_an_executor_that_does_not_answer_are_left_to_its_watcher() -> None:
    stage = await Stage(1).open()
    await stage.pool.lease("0000")
    stage.now = LEASE_TIMEOUT_S
    stage.started[0].is_gone = True
    await stage.pool.free_stale_leases()
    assert await stage.events("trial_released") == []


@story
async def test_closing_ends_every_executor() -> None:
    stage = await Stage(1, 1).open()
    await stage.pool.close()
    assert stage.killed == stage.started
