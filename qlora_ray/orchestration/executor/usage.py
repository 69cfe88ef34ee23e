"""How an executor's device was used: training, or waiting to be told what to train."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping


class DeviceUsage:
    """Adds up the seconds of one executor's device from its first step to its last.

    `training_s` is the time in which the engine trained, evaluated or saved; `idle_s` the time in between, in which no
    trial could train because all waited to be told on, for a lease, or for their actors. Time after the last step
    does not count: there was nothing left to train.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first_step_at: float | None = None
        self._began = self._ended = 0.0
        self._training_s = self._idle_s = 0.0
        self._is_busy = False

    def begin(self) -> None:
        """The engine trains from now on."""
        self._began = self._clock()
        self._is_busy = True
        if self._first_step_at is None:
            self._first_step_at = time.time()
        else:
            self._idle_s += self._began - self._ended

    def end(self) -> None:
        """The engine has nothing to train."""
        self._ended = self._clock()
        self._is_busy = False
        self._training_s += self._ended - self._began

    def busy_share(self) -> float | None:
        """The share of the time since the first step in which the engine trained; None before it."""
        if self._first_step_at is None:
            return None
        since_s = self._clock() - (self._began if self._is_busy else self._ended)
        busy_s = self._training_s + (since_s if self._is_busy else 0.0)
        total_s = self._training_s + self._idle_s + since_s
        return busy_s / total_s if total_s else None

    def to_dict(self) -> dict[str, float | None]:
        """`first_step_at` (seconds since 1970, None before it), `training_s` and `idle_s`."""
        return {"first_step_at": self._first_step_at, "training_s": self._training_s, "idle_s": self._idle_s}


def wait_share(usages: Iterable[Mapping[str, float | None]]) -> float | None:
    """The share of their devices' time, from first step to last, that executors waited; None if none has trained."""
    usages = list(usages)
    idle_s = sum(usage["idle_s"] or 0.0 for usage in usages)
    total_s = idle_s + sum(usage["training_s"] or 0.0 for usage in usages)
    return idle_s / total_s if total_s else None
