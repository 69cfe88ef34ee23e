"""The pool's actor, without Ray: that it carries out what the machine decides, and tells it what happens."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from qlora_ray.errors import NoExecutors, NoFittingDevice
from qlora_ray.orchestration.executor.launcher import ExecutorSpec
from qlora_ray.orchestration.pool.actor import Pool
from qlora_ray.orchestration.pool.leases import Lease, LeaseNeeds
from qlora_ray.orchestration.pool.terms import PoolTerms
from tests.fake_executor import FakePlacement
from tests.pool_stage import make_facts

NODE = "node"
LONG_S = 3600.0


def story(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is one run of an event loop."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class HandledExecutor:
    """An executor's handle: it is ready, changes its slots, hangs and dies when the test says so."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.held: dict[str, int] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.hangs = False
        self.heartbeats = 0
        self._news: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue()
        for name in ("describe", "wait_change", "heartbeat", "evict", "preempt", "live"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    def be_ready(self) -> None:
        """`describe` answers."""
        self._news.put_nowait(make_facts(self.slots))

    def have_slots(self, slots: int) -> None:
        """Its slots are others from now on."""
        self.slots = slots
        self._news.put_nowait(make_facts(slots, slots_reason="out of memory"))

    def die(self, error: Exception | None = None) -> None:
        """The call under way ends with Ray's error."""
        self._news.put_nowait(error or RayActorError())

    async def _describe(self) -> dict[str, Any]:
        news = await self._news.get()
        if isinstance(news, Exception):
            raise news
        return news

    async def _wait_change(self, seen_version: int) -> dict[str, Any]:
        return await self._describe()

    async def _heartbeat(self) -> dict[str, Any]:
        self.heartbeats += 1
        if self.hangs:
            await asyncio.Event().wait()
        return {"held": dict(self.held), "progress": 0, "is_training": False, "slots": self.slots}

    async def _evict(self, trial_id: str, lease_number: int) -> None:
        if self.hangs:
            raise RayActorError
        self.calls.append(("evict", trial_id, lease_number))

    async def _live(self) -> dict[str, Any]:
        return {"trials": dict(self.held)}

    async def _preempt(self, trial_id: str, lease_number: int, reason: str) -> None:
        self.calls.append(("preempt", trial_id, lease_number))


class Stage:
    """A pool over such executors. Also the pool's launcher."""

    def __init__(self, *slots: int, **terms: Any) -> None:
        self.started: list[HandledExecutor] = []
        self.killed: list[HandledExecutor] = []
        specs: list[Any] = [ExecutorSpec(FakePlacement(number), NODE) for number in slots]  # type: ignore[arg-type]
        usual = {"lease_timeout_s": 60.0, "heartbeat_interval_s": 0.001}
        self.pool = Pool(self, specs, terms=PoolTerms(**{**usual, **terms}))

    def start(self, spec: Any) -> HandledExecutor:
        """See Launcher."""
        self.started.append(HandledExecutor(spec.placement.slots_per_executor))
        return self.started[-1]

    def kill(self, executor: HandledExecutor) -> None:
        """See Launcher."""
        self.killed.append(executor)

    async def open(self) -> Stage:
        """Starts the pool, and waits until all of its executors are ready."""
        await self.pool.start()
        for executor in self.started:
            executor.be_ready()
        await self.until("executor_ready", len(self.started))
        return self

    async def until(self, name: str, count: int = 1) -> dict[str, Any]:
        """Waits for the `count`-th event of a name; one that never comes fails by the test's own limit."""
        seen: list[dict[str, Any]] = []
        while len(found := [event for event in seen if event["event"] == name]) < count:
            seen += await self.pool.next_events(len(seen), LONG_S)
        return found[count - 1]

    async def ask(self, trial_id: str, **asked: Any) -> asyncio.Task[Lease]:
        """Asks for a slot, and returns once the request is in the queue or granted."""
        asking = asyncio.create_task(self.pool.lease(trial_id, **asked))
        await asyncio.sleep(0)
        return asking


@story
async def test_a_lease_has_the_handle_of_its_executor() -> None:
    stage = await Stage(1).open()
    lease = await stage.pool.lease("0000")
    assert (lease.executor, lease.seat_id, lease.incarnation, lease.number) == (stage.started[0], 0, 1, 1)
    assert lease.facts["device"] == "fake"


@story
async def test_a_start_that_is_asked_for_again_starts_nothing_twice() -> None:
    stage = Stage(1)
    await stage.pool.start()
    await stage.pool.start()
    assert len(stage.started) == 1


@story
async def test_an_executor_whose_answer_was_lost_is_asked_again_and_not_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qlora_ray.orchestration.actor_calls.PAUSES_S", (0.0,))
    stage = await Stage(1).open()
    stage.started[0].die(ActorUnavailableError("connection reset", None))
    stage.started[0].have_slots(3)
    assert (await stage.until("slots_changed"))["slots"] == 3
    assert len(stage.started) == 1 and not stage.killed


@story
async def test_what_breaks_the_timer_is_raised_to_whoever_follows_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = await Stage(1).open()

    def break_down() -> float:
        raise KeyError("a seat")

    monkeypatch.setattr(stage.pool._machine, "next_timer", break_down)
    with pytest.raises(KeyError, match="a seat"):
        for seen in range(1, 1000):
            await stage.pool.next_events(seen, 0.01)


@story
async def test_live_figures_name_each_seat_its_trials_what_its_executor_says_and_who_waits() -> None:
    stage = await Stage(1, 2).open()
    lease = await stage.pool.lease("0000")
    await stage.pool.lease("0001")
    await stage.pool.lease("0002")
    await stage.ask("0003")
    live = await stage.pool.live()
    held = {seat["executor"]: seat["trials"] for seat in live["seats"]}
    assert "0000" in held[lease.seat_id]
    assert sorted(trial for trials in held.values() for trial in trials) == ["0000", "0001", "0002"]
    assert [seat["state"] for seat in live["seats"]] == ["ready", "ready"]
    assert [seat["live"] for seat in live["seats"]] == [{"trials": {}}, {"trials": {}}]
    assert live["waiting"] == ["0003"]


@story
async def test_a_trial_that_leaves_the_queue_is_told() -> None:
    stage = await Stage(1).open()
    await stage.pool.lease("0000")
    gone, waiting = await stage.ask("0001"), await stage.ask("0002")
    await stage.pool.release("0001")
    await stage.pool.release("0000")
    assert (await waiting).trial_id == "0002"
    with pytest.raises(asyncio.CancelledError):
        await gone


@story
async def test_a_dead_executor_is_replaced_and_its_death_told_with_its_own_reason() -> None:
    stage = await Stage(1).open()
    lease = await stage.pool.lease("0000")
    stage.started[0].die(RayError("Traceback ...\nqlora_ray.errors.ModelError: no-such-base cannot be loaded"))
    failed = await stage.until("executor_failed")
    assert failed["reason"] == "no-such-base cannot be loaded"
    assert stage.killed == [stage.started[0]]
    # The trial that finds it so as well changes nothing.
    await stage.pool.report_lost(lease.seat_id, lease.incarnation)
    with pytest.raises(NoExecutors, match="no-such-base"):
        await stage.pool.wait_ready()
    with pytest.raises(NoExecutors, match="no executor is left: no-such-base"):
        await stage.pool.lease("0000")


@story
async def test_a_start_that_dies_gets_one_more_try() -> None:
    stage = Stage(1)
    await stage.pool.start()
    ready = asyncio.create_task(stage.pool.wait_ready())
    for count in (1, 2):
        stage.started[-1].die()
        await stage.until("executor_lost" if count == 1 else "executor_failed")
    with pytest.raises(NoExecutors):
        await ready
    assert len(stage.started) == 2


@story
async def test_a_trial_that_no_device_fits_is_told() -> None:
    stage = await Stage(1).open()
    with pytest.raises(NoFittingDevice, match="of class H100"):
        await stage.pool.lease("0000", needs=LeaseNeeds(device_class="H100"))


@story
async def test_a_trial_is_ended_where_it_is_before_its_slot_goes_to_another() -> None:
    stage = await Stage(1).open()
    lease = await stage.pool.lease("0000")
    waiting = await stage.ask("0001")
    await stage.pool.end("0000")
    assert stage.started[0].calls == [("evict", "0000", lease.number)]
    await waiting


@story
async def test_a_trial_is_ended_also_where_its_executor_is_gone() -> None:
    stage = await Stage(1).open()
    await stage.pool.lease("0000")
    stage.started[0].hangs = True
    await stage.pool.end("0000")


@story
async def test_an_executor_that_cannot_evict_a_trial_is_replaced() -> None:
    stage = await Stage(1).open()
    await stage.pool.lease("0000")

    async def fail(trial_id: str, lease_number: int) -> None:
        raise RayTaskError("evict", "remote traceback", RuntimeError("CUDA error: an illegal memory access"))

    stage.started[0].evict = SimpleNamespace(remote=fail)  # type: ignore[attr-defined]
    await stage.pool.end("0000")
    lost = await stage.until("executor_lost")
    assert "could not evict trial 0000" in lost["reason"]
    assert stage.killed == [stage.started[0]]
    stage.started[1].be_ready()
    assert (await stage.pool.lease("0001")).incarnation == 2


@story
async def test_changed_slots_are_told() -> None:
    stage = await Stage(2).open()
    stage.started[0].have_slots(1)
    changed = await stage.until("slots_changed")
    assert (changed["slots"], changed["ready_slots"], changed["reason"]) == (1, 1, "out of memory")


@story
async def test_one_executor_that_hangs_keeps_nobody_from_being_heard_and_is_replaced() -> None:
    stage = Stage(1, 1, heartbeat_timeout_s=0.02)
    await stage.open()
    stage.started[0].hangs = True
    answered = stage.started[0].heartbeats
    lost = await stage.until("executor_lost")
    assert lost["executor"] == 0 and "has not answered" in lost["reason"]
    assert stage.started[0].heartbeats <= answered + 1 < stage.started[1].heartbeats
    assert stage.killed == [stage.started[0]]


@story
async def test_a_node_that_joins_brings_its_slots() -> None:
    stage = await Stage(1).open()
    await stage.pool.lease("0000")
    waiting = await stage.ask("0001")
    assert await stage.pool.add_seats([ExecutorSpec(FakePlacement(1), "other")]) == [1]  # type: ignore[arg-type]
    stage.started[1].be_ready()
    assert (await waiting).seat_id == 1


@story
async def test_a_node_that_is_told_of_twice_has_its_seats_once() -> None:
    stage = await Stage(1).open()
    specs: list[Any] = [ExecutorSpec(FakePlacement(1), "other") for _ in range(2)]  # type: ignore[arg-type]
    assert [await stage.pool.add_seats(specs) for _ in range(2)] == [[1, 2], []]
    await stage.pool.lose_node("other", "its raylet died")
    assert await stage.pool.add_seats(specs) == [3, 4]


@story
async def test_a_node_that_drains_has_its_trials_put_off() -> None:
    stage = await Stage(1).open()
    lease = await stage.pool.lease("0000")
    await stage.pool.drain_node(NODE, "maintenance", LONG_S)
    await stage.until("node_draining")
    await asyncio.sleep(0)
    assert stage.started[0].calls == [("preempt", "0000", lease.number)]
    await stage.pool.report_preempted("0000", lease.number, "node is draining")
    await stage.until("node_drained")
    assert stage.killed == stage.started


@story
async def test_a_drain_without_a_deadline_has_the_pools_own() -> None:
    stage = await Stage(1, drain_timeout_s=77.0).open()
    assert await stage.pool.drain_node(NODE, "maintenance") == 77.0
    assert await stage.pool.drain_node(NODE, "maintenance", 5.0) == 5.0


@story
async def test_a_node_that_is_gone_takes_its_seats_with_one_event() -> None:
    stage = await Stage(1, 1).open()
    await stage.pool.lease("0000")
    await stage.pool.lose_node(NODE, "its raylet died")
    lost = await stage.until("node_lost")
    assert (lost["executors"], lost["trials"], lost["num_left"]) == ([0, 1], ["0000"], 0)
    assert stage.killed == stage.started


@story
async def test_closing_ends_every_executor() -> None:
    stage = await Stage(1, 1).open()
    await stage.pool.close()
    assert stage.killed == stage.started
