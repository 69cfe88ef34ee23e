"""What a search may take: `search.time_budget` and `search.gpu_hours`, counted from where this run's search begins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from qlora_ray.config.schema import Search
from qlora_ray.formats import format_duration
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.scheduling import ScheduledTrial

SECONDS_PER_HOUR = 3600.0


class SearchBudget:
    """Says when it is spent, and how long it still lasts.

    Args:
        search: The config section.
        clock: Monotonic seconds.
    """

    def __init__(self, search: Search, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._time_s = search.time_budget
        self._gpu_hours = search.gpu_hours
        self._clock = clock
        self._began_at: float | None = None
        # Written by the thread that counts them.
        self._hours = self._began_hours = 0.0
        self._num_devices = 0

    @property
    def is_limited(self) -> bool:
        """Whether there is a budget at all."""
        return self._time_s is not None or self._gpu_hours is not None

    def begin(self) -> None:
        """The search begins now."""
        self._began_at, self._began_hours = self._clock(), self._hours

    def note_hours(self, hours: float, *, num_devices: int) -> None:
        """Takes over what devices were held, in hours since any beginning, and how many are held now."""
        self._hours, self._num_devices = hours, num_devices

    def find_spent(self) -> str | None:
        """Returns which budget is spent, in words; None while none is."""
        if self._began_at is None:
            return None
        if self._time_s is not None and self._clock() - self._began_at >= self._time_s:
            return f"search.time_budget of {format_duration(self._time_s)} is spent"
        if self._gpu_hours is not None and self._hours - self._began_hours >= self._gpu_hours:
            return f"search.gpu_hours of {self._gpu_hours:g} are spent"
        return None

    def seconds_left(self) -> float | None:
        """Returns the seconds until one of them is spent, on the devices of now; None where that is not limited."""
        passed_s = 0.0 if self._began_at is None else self._clock() - self._began_at
        left = [] if self._time_s is None else [self._time_s - passed_s]
        if self._gpu_hours is not None and self._num_devices:
            begun = self._hours - self._began_hours if self._began_at is not None else 0.0
            left.append((self._gpu_hours - begun) * SECONDS_PER_HOUR / self._num_devices)
        return max(0.0, min(left)) if left else None


class BudgetEnd:
    """How a search goes to its end once its budget is spent.

    Where no trial is complete yet, one goes on to its end, so that there is a winner; the others wait at their next
    report, to take its place if it fails.

    Args:
        reason: Which budget is spent.

    Attributes:
        last: The trial that goes on; None where a trial is complete.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.last: ScheduledTrial | None = None

    def describe(self, ledger: Ledger) -> str:
        """What happens now, in words."""
        ends = "those that run end at their next report"
        return f"no new trials; {ends}" + ("" if ledger.best else ", all but one, since none is complete yet")

    def choose_last(self, trials: Iterable[ScheduledTrial], ledger: Ledger) -> ScheduledTrial | None:
        """Returns the one that goes on: that with the most reports, and of several the best.

        It stays so until it has ended, or another one takes over.

        Args:
            trials: Those that have begun and not ended.
            ledger: Has their reports.
        """

        def rank(trial: ScheduledTrial) -> tuple[int, float, int]:
            index = max(ledger.entries[trial.number].intermediate, default=0)
            return -index, _cost(trial, index, ledger), trial.number

        if ledger.best is not None:
            self.last = None
        elif self.last is None or self.last.is_ended:
            self.last = min((trial for trial in trials if not trial.is_ended), key=rank, default=None)
        return self.last

    def goes_on(self, trial: ScheduledTrial, ledger: Ledger) -> bool:
        """Whether a trial goes on from its report; one that is as far as the last one, and was better there, takes
        over."""
        if self.last is not None and trial is not self.last:
            index = max(ledger.entries[self.last.number].intermediate, default=0)
            is_as_far = max(ledger.entries[trial.number].intermediate, default=0) >= max(index, 1)
            if is_as_far and (not index or _cost(trial, index, ledger) < _cost(self.last, index, ledger)):
                self.last = trial
        return trial is self.last


def _cost(trial: ScheduledTrial, index: int, ledger: Ledger) -> float:
    """The objective at a report, lower being better; infinite where there is none."""
    value = ledger.entries[trial.number].intermediate.get(index, math.nan)
    return math.inf if math.isnan(value) else value if ledger.mode == "min" else -value
