"""The calls that the pool makes of its executors: started, watched, asked, and ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from ray.exceptions import RayError, RayTaskError

from qlora_ray.orchestration.actor_calls import ask
from qlora_ray.orchestration.executor.launcher import Launcher
from qlora_ray.orchestration.pool.actions import AskHeartbeat, EvictTrial, KillExecutor, PreemptTrial, StartExecutor
from qlora_ray.orchestration.pool.events import Event, Evicted, ExecutorDied, ExecutorReady, Heard, SlotsChanged
from qlora_ray.orchestration.ray_errors import describe_death, is_ours


class ExecutorCalls:
    """Ray's handles of the executors, by seat and incarnation, and the calls of them that are under way.

    Args:
        launcher: Starts and ends executors.
        tell: Takes what comes of the calls.
        clock: Monotonic seconds.
    """

    def __init__(self, launcher: Launcher, *, tell: Callable[[Event], None], clock: Callable[[], float]) -> None:
        self._launcher = launcher
        self._tell = tell
        self._clock = clock
        self._handles: dict[tuple[int, int], Any] = {}
        self._watchers: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._evictions: dict[str, set[asyncio.Task[None]]] = {}
        # The event loop keeps no task alive that nobody holds.
        self._calls: set[asyncio.Task[None]] = set()

    def handle_of(self, seat_id: int, incarnation: int) -> Any:
        """The handle of an executor that has not been ended."""
        return self._handles[seat_id, incarnation]

    def start(self, action: StartExecutor) -> None:
        """Starts an executor, and watches it from then on."""
        key = (action.seat_id, action.incarnation)
        self._handles[key] = self._launcher.start(action.spec)
        self._watchers[key] = asyncio.create_task(self._watch(action))

    def kill(self, action: KillExecutor) -> None:
        """Ends an executor."""
        key = (action.seat_id, action.incarnation)
        watcher = self._watchers.pop(key)
        if watcher is not asyncio.current_task():
            watcher.cancel()
        self._launcher.kill(self._handles.pop(key))

    def evict(self, action: EvictTrial) -> None:
        """Has an executor put a trial out."""
        task = self._call(self._evict_there(action))
        leaving = self._evictions.setdefault(action.trial_id, set())
        leaving.add(task)
        task.add_done_callback(lambda task: self._end_eviction(action.trial_id, task))

    def preempt(self, action: PreemptTrial) -> None:
        """Has an executor put a trial out with its state."""
        self._call(self._preempt_there(action))

    def ask_heartbeat(self, action: AskHeartbeat) -> None:
        """Asks an executor whether it lives."""
        self._call(self._listen(action))

    async def wait_evicted(self, trial_id: str) -> None:
        """Waits until a trial that is being put out has left."""
        leaving = self._evictions.get(trial_id)
        if leaving:
            await asyncio.wait(set(leaving))

    def close(self) -> None:
        """Ends all executors, and the calls of them."""
        for task in (*self._calls, *self._watchers.values()):
            task.cancel()
        for executor in self._handles.values():
            self._launcher.kill(executor)

    def _end_eviction(self, trial_id: str, task: asyncio.Task[None]) -> None:
        leaving = self._evictions[trial_id]
        leaving.discard(task)
        if not leaving:
            del self._evictions[trial_id]

    async def _evict_there(self, action: EvictTrial) -> None:
        executor = self._handles.get((action.seat_id, action.incarnation))
        if executor is None:
            return
        try:
            await ask(executor.evict, action.trial_id, action.lease_number)
            self._tell(Evicted(action.seat_id, action.incarnation, action.trial_id, action.lease_number))
        except RayTaskError as error:
            # Whether the trial is still there nobody knows, so that its slot could never be given to another.
            reason = f"it could not evict trial {action.trial_id}: {describe_death(error)}"
            self._tell(ExecutorDied(action.seat_id, action.incarnation, reason))
        except RayError:
            # An executor that is gone has taken the trial with it; its watcher sees to the rest.
            pass

    async def _preempt_there(self, action: PreemptTrial) -> None:
        executor = self._handles.get((action.seat_id, action.incarnation))
        with contextlib.suppress(RayError):
            if executor is not None:
                await ask(executor.preempt, action.trial_id, action.lease_number, action.reason)

    async def _listen(self, action: AskHeartbeat) -> None:
        """One that never answers is the machine's to judge: the call ends when its executor is ended."""
        executor = self._handles.get((action.seat_id, action.incarnation))
        if executor is None:
            return
        asked_at = self._clock()
        with contextlib.suppress(RayError):
            answer = await ask(executor.heartbeat)
            self._tell(Heard(action.seat_id, action.incarnation, asked_at, **answer))

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task

    async def _watch(self, action: StartExecutor) -> None:
        """Waits for an executor to be ready, then for changes of its slots, and at last for its end."""
        seat_id, incarnation = action.seat_id, action.incarnation
        executor = self._handles[seat_id, incarnation]
        try:
            facts = await ask(executor.describe)
            self._tell(ExecutorReady(seat_id, incarnation, facts))
            while facts := await ask(executor.wait_change, facts["version"]):
                self._tell(SlotsChanged(seat_id, incarnation, facts))
        except RayError as error:
            # Not only RayActorError: a kill by Ray's memory monitor, say, is a plain RayError.
            self._tell(ExecutorDied(seat_id, incarnation, describe_death(error), is_ours(error)))
