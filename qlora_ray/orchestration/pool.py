"""The pool: keeps executors as the plan wants them, and grants leases of their slots."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ray.exceptions import RayError

from qlora_ray.errors import NoExecutors
from qlora_ray.orchestration.executor.launcher import ExecutorSpec, Launcher, describe_death, is_ours
from qlora_ray.orchestration.feed import EventFeed

# A place whose executor died this often is given up: the cause is on the node, not in a trial.
MAX_RESTARTS = 3
RECONCILE_INTERVAL_S = 5.0


class ExecutorState(Enum):
    """What the pool knows of an executor."""

    STARTING = "starting"
    READY = "ready"
    LOST = "lost"  # it died, and its successor is not started yet
    FAILED = "failed"  # given up for good


@dataclass
class _ExecutorHandle:
    """One executor of the plan, through all its restarts."""

    index: int
    spec: ExecutorSpec
    executor: Any = None
    state: ExecutorState = ExecutorState.STARTING
    facts: dict[str, Any] = field(default_factory=dict)
    restarts: int = 0
    generation: int = 0
    watcher: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether its slots can be leased."""
        return self.state is ExecutorState.READY


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
        launcher: Starts and ends executors.
        specs: The executors to keep.
        lease_timeout_s: A lease this old whose trial its executor does not know is freed.
        max_slots: Leases at once over all executors; None for no bound.
        clock: Monotonic seconds; tests give their own.
    """

    def __init__(
        self,
        launcher: Launcher,
        specs: list[ExecutorSpec],
        *,
        lease_timeout_s: float,
        max_slots: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launcher = launcher
        self._lease_timeout_s = lease_timeout_s
        self._max_slots = max_slots
        self._clock = clock
        self._handles = [_ExecutorHandle(index, spec) for index, spec in enumerate(specs)]
        self._leases: dict[str, tuple[Lease, float]] = {}
        self._waiting: deque[tuple[str, asyncio.Future[Lease]]] = deque()
        self._feed = EventFeed()
        self._cause = "none was started"
        self._reconciler: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts every executor; returns before they are ready."""
        for handle in self._handles:
            self._launch(handle)
        self._reconciler = asyncio.create_task(self._reconcile())

    async def wait_ready(self) -> None:
        """Waits for the first executor to be ready.

        Raises:
            NoExecutors: If none of them can be; the message is the last one's cause.
        """
        while not any(handle.is_ready for handle in self._handles) and not self._all_failed():
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
            self._tell("trial_preempted", self._handles[found[0].executor_index], reason, trial=trial_id)
        await self.release(trial_id)

    async def report_lost(self, executor_index: int, generation: int) -> None:
        """A trial found its executor dead; the watcher will have seen it too, whichever comes first acts."""
        handle = self._handles[executor_index]
        if handle.generation == generation and handle.is_ready:
            self._lose(handle, "it died")

    async def next_events(self, seen: int, timeout_s: float) -> list[dict[str, Any]]:
        """Events after the first `seen`; waits up to `timeout_s` for one."""
        return await self._feed.after(seen, timeout_s=timeout_s)

    async def ready_executors(self) -> list[tuple[Any, dict[str, Any]]]:
        """Handles and facts of the executors that are ready."""
        return [(handle.executor, handle.facts) for handle in self._handles if handle.is_ready]

    async def free_stale_leases(self) -> None:
        """Frees the leases of trials that their executor does not know: their actor died before it admitted them."""
        for trial_id, (lease, granted_at) in list(self._leases.items()):
            if self._clock() - granted_at < self._lease_timeout_s:
                continue
            try:
                admitted = await lease.executor.trials.remote()
            except RayError:
                continue
            if trial_id not in admitted and self._leases.get(trial_id, (None,))[0] is lease:
                self._drop_lease(trial_id)
                self._grant()

    async def close(self) -> None:
        """Ends all executors."""
        if self._reconciler:
            self._reconciler.cancel()
        for handle in self._handles:
            if handle.watcher:
                handle.watcher.cancel()
            if handle.executor is not None:
                self._launcher.kill(handle.executor)

    def _launch(self, handle: _ExecutorHandle) -> None:
        handle.state = ExecutorState.STARTING
        handle.generation += 1
        handle.executor = self._launcher.start(handle.spec)
        handle.watcher = asyncio.create_task(self._watch(handle, handle.generation))

    async def _watch(self, handle: _ExecutorHandle, generation: int) -> None:
        """Waits for an executor to be ready, then for its end."""
        try:
            handle.facts = await handle.executor.describe.remote()
            handle.state = ExecutorState.READY
            self._tell("executor_ready", handle, f"{handle.facts['device']}, {handle.facts['precision_reason']}")
            self._grant()
            while facts := await handle.executor.wait_change.remote(handle.facts["version"]):
                handle.facts = facts
                self._tell("slots_changed", handle, facts["slots_reason"], slots=facts["slots"])
                self._grant()
        except RayError as error:
            # Not only RayActorError: a kill by Ray's memory monitor, say, is a plain RayError.
            if handle.generation == generation:
                self._lose(handle, describe_death(error), is_final=is_ours(error))

    def _lose(self, handle: _ExecutorHandle, reason: str, *, is_final: bool = False) -> None:
        self._cause = reason
        for trial_id, (lease, _) in list(self._leases.items()):
            if lease.executor_index == handle.index:
                self._drop_lease(trial_id)
        # One that is only cut off would keep its share of the device, and its successor would wait for ever.
        self._launcher.kill(handle.executor)
        was_ready = handle.is_ready
        handle.restarts += 1
        if handle.watcher is not None and handle.watcher is not asyncio.current_task():
            handle.watcher.cancel()
        # An error of ours (a base that cannot be loaded) would come again; a start that died gets one more try.
        if is_final or handle.restarts > (MAX_RESTARTS if was_ready else 1):
            handle.state = ExecutorState.FAILED
            self._tell("executor_failed", handle, reason)
        else:
            handle.state = ExecutorState.LOST
            self._tell("executor_lost", handle, reason)
            self._launch(handle)
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
            handle = self._free_handle()
            if handle is None:
                return
            self._waiting.popleft()
            lease = Lease(trial_id, handle.index, handle.generation, handle.executor, handle.facts)
            self._leases[trial_id] = (lease, self._clock())
            self._tell("trial_leased", handle, "a slot is free", trial=trial_id)
            future.set_result(lease)

    def _drop_lease(self, trial_id: str) -> None:
        """Takes a trial's slot from it, if it has one."""
        found = self._leases.pop(trial_id, None)
        if found is not None:
            self._tell("trial_released", self._handles[found[0].executor_index], "", trial=trial_id)

    def _all_failed(self) -> bool:
        return all(handle.state is ExecutorState.FAILED for handle in self._handles)

    def _free_handle(self) -> _ExecutorHandle | None:
        """The ready executor with the smallest share of its slots held, so that all are held evenly."""
        if self._max_slots is not None and len(self._leases) >= self._max_slots:
            return None
        held = Counter(lease.executor_index for lease, _ in self._leases.values())
        free = [h for h in self._handles if h.is_ready and held[h.index] < h.facts["slots"]]
        return min(free, key=lambda h: (held[h.index] / h.facts["slots"], h.index), default=None)

    async def _reconcile(self) -> None:
        while True:
            await asyncio.sleep(RECONCILE_INTERVAL_S)
            await self.free_stale_leases()

    def _tell(self, event: str, handle: _ExecutorHandle, reason: str, **facts: Any) -> None:
        slots = sum(other.facts.get("slots", 0) for other in self._handles if other.is_ready)
        self._feed.append(
            {
                "event": event,
                "reason": reason,
                "executor": handle.index,
                "hostname": handle.facts.get("hostname"),
                "ready_slots": slots if self._max_slots is None else min(slots, self._max_slots),
                "num_failed": sum(other.state is ExecutorState.FAILED for other in self._handles),
                **facts,
            }
        )
