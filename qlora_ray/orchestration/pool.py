"""The pool: keeps executors as the plan wants them, and grants leases of their slots."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qlora_ray.errors import NoExecutors, QloraRayError
from qlora_ray.hardware import Placement
from qlora_ray.orchestration.executor.actor import Executor, ExecutorTerms
from qlora_ray.orchestration.feed import EventFeed

# A place whose executor died this often is given up: the cause is on the node, not in a trial.
MAX_RESTARTS = 3
RECONCILE_INTERVAL_S = 5.0
# Calls an executor serves at once beside one long poll per slot: describe, evict, wait_change, trials, admit.
SPARE_CALLS = 6
# How Ray's account of an actor that failed to start names our exceptions.
OUR_ERRORS = "qlora_ray.errors."


@dataclass(frozen=True)
class Seat:
    """One executor the plan wants: its placement, and the Ray node it belongs on."""

    placement: Placement
    node_id: str


@dataclass
class _Member:
    """An executor as the pool knows it. States: starting, ready, lost (being replaced), failed (given up)."""

    index: int
    seat: Seat
    handle: Any = None
    state: str = "starting"
    facts: dict[str, Any] = field(default_factory=dict)
    restarts: int = 0
    generation: int = 0
    watcher: asyncio.Task[None] | None = None


@dataclass(frozen=True)
class Lease:
    """A trial's hold on one slot."""

    trial_id: str
    executor_index: int
    generation: int
    executor: Any
    facts: dict[str, Any]


class Pool:
    """The actor. Its methods are coroutines of one event loop, so that its state needs no locks.

    Args:
        terms: What every executor is told.
        seats: The executors to keep.
        data: The object reference of the prepared data, in a list so that Ray passes it on unresolved.
        max_slots: Leases at once over all executors; None for no bound.
        executor_class: What each executor is; tests give one without a model.
    """

    def __init__(
        self,
        terms: ExecutorTerms,
        seats: list[Seat],
        data: list[Any],
        max_slots: int | None,
        executor_class: type = Executor,
    ) -> None:
        self._executor_class = executor_class
        self._terms = terms
        self._data = data
        self._max_slots = max_slots
        self._members = [_Member(index, seat) for index, seat in enumerate(seats)]
        self._leases: dict[str, tuple[Lease, float]] = {}
        self._waiting: deque[tuple[str, asyncio.Future[Lease]]] = deque()
        self._feed = EventFeed()
        self._cause = "none was started"
        self._reconciler: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts every executor; returns before they are ready."""
        for member in self._members:
            self._launch(member)
        self._reconciler = asyncio.create_task(self._reconcile())

    async def wait_ready(self) -> None:
        """Waits for the first executor to be ready.

        Raises:
            NoExecutors: If none of them can be; the message is the last one's cause.
        """
        while not any(m.state == "ready" for m in self._members) and not self._all_failed():
            await self._feed.wait_growth()
        if self._all_failed():
            raise NoExecutors(self._cause)

    async def lease(self, trial_id: str, *, goes_on: bool = False) -> Lease:
        """Waits for a free slot, first come first served, but for trials that go on: they come before new ones.

        Raises:
            NoExecutors: If no executor is left to wait for.
        """
        if trial_id in self._leases:
            return self._leases[trial_id][0]
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        if goes_on:
            self._waiting.appendleft((trial_id, future))
        else:
            self._waiting.append((trial_id, future))
        self._grant()
        return await future

    async def release(self, trial_id: str) -> None:
        """Gives a slot back, or leaves the queue."""
        self._drop_lease(trial_id)
        for waiting, future in self._waiting:
            if waiting == trial_id:
                future.cancel()
        self._grant()

    async def end(self, trial_id: str) -> None:
        """Ends a trial wherever it is, and gives its slot back."""
        found = self._leases.get(trial_id)
        if found is not None:
            # An executor that is gone has taken the trial with it.
            with contextlib.suppress(RayError):
                await found[0].executor.evict.remote(trial_id)
        await self.release(trial_id)

    async def report_preempted(self, trial_id: str, reason: str) -> None:
        """A trial was put off its device for memory: its slot is given back, and the driver told."""
        found = self._leases.get(trial_id)
        if found is not None:
            self._tell("trial_preempted", self._members[found[0].executor_index], reason, trial=trial_id)
        await self.release(trial_id)

    async def report_lost(self, executor_index: int, generation: int) -> None:
        """A trial found its executor dead; the watcher will have seen it too, whichever comes first acts."""
        member = self._members[executor_index]
        if member.generation == generation and member.state == "ready":
            self._lose(member, "it died")

    async def next_events(self, seen: int, timeout_s: float) -> list[dict[str, Any]]:
        """Events after the first `seen`; waits up to `timeout_s` for one."""
        return await self._feed.after(seen, timeout_s=timeout_s)

    async def ready_executors(self) -> list[tuple[Any, dict[str, Any]]]:
        """Handles and facts of the executors that are ready."""
        return [(member.handle, member.facts) for member in self._members if member.state == "ready"]

    async def close(self) -> None:
        """Ends all executors."""
        if self._reconciler:
            self._reconciler.cancel()
        for member in self._members:
            if member.watcher:
                member.watcher.cancel()
            if member.handle is not None:
                ray.kill(member.handle)

    def _launch(self, member: _Member) -> None:
        placement = member.seat.placement
        member.state = "starting"
        member.generation += 1
        # soft=False: a placement is the plan for this node's device, not for whichever node has room.
        member.handle = (
            ray.remote(self._executor_class)
            .options(
                num_cpus=placement.num_cpus,
                num_gpus=placement.num_gpus,
                max_concurrency=SPARE_CALLS + self._most_slots(placement),
                scheduling_strategy=NodeAffinitySchedulingStrategy(member.seat.node_id, soft=False),
            )
            .remote(self._terms, placement, self._data[0])
        )
        member.watcher = asyncio.create_task(self._watch(member, member.generation))

    async def _watch(self, member: _Member, generation: int) -> None:
        """Waits for an executor to be ready, then for its end."""
        try:
            member.facts = await member.handle.describe.remote()
            member.state = "ready"
            self._tell("executor_ready", member, f"{member.facts['device']}, {member.facts['precision_reason']}")
            self._grant()
            while facts := await member.handle.wait_change.remote(member.facts["version"]):
                member.facts = facts
                self._tell("slots_changed", member, facts["slots_reason"], slots=facts["slots"])
                self._grant()
        except RayError as error:
            # Not only RayActorError: a kill by Ray's memory monitor, say, is a plain RayError.
            if member.generation == generation:
                self._lose(member, describe_death(error), is_final=is_ours(error))

    def _lose(self, member: _Member, reason: str, *, is_final: bool = False) -> None:
        self._cause = reason
        for trial_id, (lease, _) in list(self._leases.items()):
            if lease.executor_index == member.index:
                self._drop_lease(trial_id)
        # One that is only cut off would keep its share of the device, and its successor would wait for ever.
        ray.kill(member.handle)
        was_ready = member.state == "ready"
        member.restarts += 1
        if member.watcher is not None and member.watcher is not asyncio.current_task():
            member.watcher.cancel()
        # An error of ours (a base that cannot be loaded) would come again; a start that died gets one more try.
        if is_final or member.restarts > (MAX_RESTARTS if was_ready else 1):
            member.state = "failed"
            self._tell("executor_failed", member, reason)
        else:
            member.state = "lost"
            self._tell("executor_lost", member, reason)
            self._launch(member)
        self._grant()

    def _grant(self) -> None:
        """Hands free slots to those who wait; fails them all if no executor can ever have one."""
        if self._all_failed():
            while self._waiting:
                _, future = self._waiting.popleft()
                if not future.done():
                    future.set_exception(NoExecutors(f"no executor is left: {self._cause}"))
            return
        while self._waiting:
            trial_id, future = self._waiting[0]
            if future.done():
                self._waiting.popleft()
                continue
            member = self._free_member()
            if member is None:
                return
            self._waiting.popleft()
            lease = Lease(trial_id, member.index, member.generation, member.handle, member.facts)
            self._leases[trial_id] = (lease, time.monotonic())
            self._tell("trial_leased", member, "a slot is free", trial=trial_id)
            future.set_result(lease)

    def _drop_lease(self, trial_id: str) -> None:
        """Takes a trial's slot from it, if it has one."""
        found = self._leases.pop(trial_id, None)
        if found is not None:
            self._tell("trial_released", self._members[found[0].executor_index], "", trial=trial_id)

    def _most_slots(self, planned: Placement) -> int:
        """Slots the executor can have: on a node of mixed GPUs, Ray chooses which it gets."""
        plan = self._terms.plan
        placements = [planned, *(plan.placements if plan is not None else ())]
        return max(placement.slots_per_executor for placement in placements)

    def _all_failed(self) -> bool:
        return all(member.state == "failed" for member in self._members)

    def _free_member(self) -> _Member | None:
        """The ready executor with the smallest share of its slots held, so that all are held evenly."""
        if self._max_slots is not None and len(self._leases) >= self._max_slots:
            return None
        held = Counter(lease.executor_index for lease, _ in self._leases.values())
        free = [m for m in self._members if m.state == "ready" and held[m.index] < m.facts["slots"]]
        return min(free, key=lambda m: (held[m.index] / m.facts["slots"], m.index), default=None)

    async def _reconcile(self) -> None:
        """Frees the leases of trials that their executor does not know: their actor died before it admitted them."""
        timeout_s = self._terms.config.cluster.lease_timeout_s
        while True:
            await asyncio.sleep(RECONCILE_INTERVAL_S)
            for trial_id, (lease, granted_at) in list(self._leases.items()):
                if time.monotonic() - granted_at < timeout_s:
                    continue
                try:
                    admitted = await lease.executor.trials.remote()
                except RayError:
                    continue
                if trial_id not in admitted and self._leases.get(trial_id, (None,))[0] is lease:
                    self._drop_lease(trial_id)
                    self._grant()

    def _tell(self, event: str, member: _Member, reason: str, **facts: Any) -> None:
        slots = sum(m.facts.get("slots", 0) for m in self._members if m.state == "ready")
        self._feed.append(
            {
                "event": event,
                "reason": reason,
                "executor": member.index,
                "hostname": member.facts.get("hostname"),
                "ready_slots": slots if self._max_slots is None else min(slots, self._max_slots),
                "num_failed": sum(m.state == "failed" for m in self._members),
                **facts,
            }
        )


def describe_death(error: Exception) -> str:
    """One line of why an executor ended: its own error if it raised one, else Ray's account."""
    cause = _cause_of(error)
    if isinstance(cause, QloraRayError):
        return str(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Ray appends the remote traceback to the message; the exception itself is its last line.
    last = lines[-1] if lines else type(error).__name__
    return last.split(": ", 1)[1] if last.startswith(OUR_ERRORS) else last


def is_ours(error: Exception) -> bool:
    """Whether an executor ended by an error of ours, which would come again: a base that cannot be loaded, say."""
    lines = str(error).strip().splitlines()
    return isinstance(_cause_of(error), QloraRayError) or (bool(lines) and lines[-1].startswith(OUR_ERRORS))


def _cause_of(error: Exception) -> BaseException:
    """The exception an actor raised, where Ray carries it: as the cause of a task, or in a failed creation."""
    if isinstance(error, RayTaskError):
        return error.cause
    return error
