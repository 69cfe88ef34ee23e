"""How fast executors train, in whole trials per second, measured from the steps of the trials on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# Older measurements fade, since the load on a device changes, with the time that a trial takes there, which spans its
# training and its evaluations; at least with this.
LEAST_FADING_S = 120.0
# Trials that share an executor slow each other down: twice as many get this power of 2 times as much done. Measured:
# 1.1 to 1.3 on a CPU, and more on a GPU (docs/measured.md).
SHARING_POWER = 0.3


@dataclass(frozen=True)
class Speed:
    """What an executor gets done.

    Attributes:
        trials_per_s: Whole trials per second, all of its trials together; evaluations are in the time.
        trials_at_once: How many it trained meanwhile, on average.
    """

    trials_per_s: float
    trials_at_once: float

    def at(self, num_trials: int) -> float:
        """Whole trials per second with so many at once, which is at least 1."""
        return self.trials_per_s * (num_trials / self.trials_at_once) ** SHARING_POWER


@dataclass(frozen=True)
class TrialPlace:
    """Where a trial is: its executor, the share of its steps that it has taken, and whether it began in this run."""

    executor: int
    share: float
    is_fresh: bool = True


@dataclass
class _Work:
    trials: float = 0.0
    busy_s: float = 0.0
    trial_s: float = 0.0

    def fade(self, factor: float) -> None:
        self.trials *= factor
        self.busy_s *= factor
        self.trial_s *= factor

    def fading_s(self) -> float:
        speed = self.speed()
        return max(LEAST_FADING_S, speed.trials_at_once / speed.trials_per_s) if speed is not None else LEAST_FADING_S

    def speed(self) -> Speed | None:
        if self.trials <= 0 or self.busy_s <= 0 or self.trial_s <= 0:
            return None
        return Speed(self.trials / self.busy_s, max(1.0, self.trial_s / self.busy_s))


class SpeedMeter:
    """Adds up what each executor has done, look by look."""

    def __init__(self) -> None:
        self._work: dict[int, _Work] = {}
        self._places: dict[str, TrialPlace] = {}
        self._looked_at: float | None = None

    def look(
        self, places: Mapping[str, TrialPlace], *, ended: Mapping[str, float], now: float, is_queued: bool
    ) -> None:
        """Takes note of where the trials are.

        Args:
            places: The trials on executors, by id.
            ended: The share at which each trial of the last look ended that is not there any more.
            now: Monotonic seconds.
            is_queued: Whether trials are to come; then an executor without one is between two, and not done.
        """
        elapsed_s = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        held: dict[int, int] = {}
        for place in self._places.values():
            held[place.executor] = held.get(place.executor, 0) + 1
        for executor, work in self._work.items():
            work.fade(math.exp(-elapsed_s / work.fading_s()))
            num_trials = held.get(executor, 0)
            if num_trials or is_queued:
                work.busy_s += elapsed_s
                work.trial_s += elapsed_s * max(1, num_trials)
        for trial, place in places.items():
            before = self._places.get(trial)
            work = self._work.setdefault(place.executor, _Work())
            if before is not None:
                work.trials += max(0.0, place.share - before.share)
            elif place.is_fresh:
                work.trials += place.share
        for trial, place in self._places.items():
            if trial not in places and trial in ended:
                self._work[place.executor].trials += max(0.0, ended[trial] - place.share)
        self._places = dict(places)

    def speed_of(self, executor: int) -> Speed | None:
        """An executor's speed; that of all where it has none yet, and None where none has."""
        work = self._work.get(executor)
        return (work.speed() if work is not None else None) or self.mean_speed()

    def mean_speed(self) -> Speed | None:
        """The mean of all executors; None where none has a speed yet."""
        speeds = [speed for work in self._work.values() if (speed := work.speed()) is not None]
        if not speeds:
            return None
        return Speed(
            sum(speed.trials_per_s for speed in speeds) / len(speeds),
            sum(speed.trials_at_once for speed in speeds) / len(speeds),
        )
