"""What executors say of themselves right now, asked for together, seldom, and without waiting for one that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from ray.exceptions import RayError

from qlora_ray.orchestration.actor_calls import ask

# Executors are asked no more often than this, however often the pool is.
ASK_INTERVAL_S = 1.9
# How long one that answers late is waited for; what it says then is the answer to the next call.
ANSWER_TIMEOUT_S = 1.0

ExecutorKey = tuple[int, int]


class LiveAnswers:
    """The last answer of each executor to `live`. Used from one event loop only.

    An executor is asked again once it has answered, so that calls do not pile up at one that hangs; until then its last
    answer stands.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._asked_at: float | None = None
        self._answers: dict[ExecutorKey, dict[str, Any]] = {}
        self._calls: dict[ExecutorKey, asyncio.Task[None]] = {}

    async def ask(self, executors: Mapping[ExecutorKey, Any]) -> Mapping[ExecutorKey, dict[str, Any]]:
        """The answers of these executors; of those that have not answered yet, none.

        Args:
            executors: Their handles, by seat and incarnation.
        """
        now = self._clock()
        if self._asked_at is None or now - self._asked_at >= ASK_INTERVAL_S:
            self._asked_at = now
            self._forget_others(executors)
            for key, executor in executors.items():
                if key not in self._calls:
                    self._calls[key] = asyncio.create_task(self._call(key, executor))
        calls = [self._calls[key] for key in executors if key in self._calls]
        if calls:
            await asyncio.wait(calls, timeout=ANSWER_TIMEOUT_S)
        return {key: self._answers[key] for key in executors if key in self._answers}

    def close(self) -> None:
        """Waits for nobody any more."""
        for call in self._calls.values():
            call.cancel()

    def _forget_others(self, executors: Mapping[ExecutorKey, Any]) -> None:
        for key in self._calls.keys() - executors.keys():
            self._calls.pop(key).cancel()
        for key in self._answers.keys() - executors.keys():
            del self._answers[key]

    async def _call(self, key: ExecutorKey, executor: Any) -> None:
        try:
            self._answers[key] = await ask(executor.live)
        except RayError:
            # It died, which its watcher finds out.
            self._answers.pop(key, None)
        finally:
            self._calls.pop(key, None)
