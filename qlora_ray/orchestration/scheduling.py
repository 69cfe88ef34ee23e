"""Ray Tune's schedulers over our own trials: the little that they ask of a controller and of a trial.

Source: `TuneController` of Ray 2.60, whose `add_trial`, `_process_trial_result`, `stop_trial` and `_maybe_add_actors`
call a scheduler in this order. tests/ray/test_scheduling.py holds the decisions against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from qlora_ray.runs.paths import trial_id_of

# The metric that schedulers compare, in each result they are given.
OBJECTIVE = "objective"


@dataclass(eq=False)
class ScheduledTrial:
    """A trial as a scheduler knows one: by identity, id and status.

    Attributes:
        config: Its values of the search space.
        status: One of Tune's `Trial.PENDING`, `RUNNING`, `PAUSED`, `TERMINATED`.
        last_result: The last result that its scheduler was given.
        is_saving: Never: a trial's state is on disk before its report is told.
    """

    number: int
    config: Mapping[str, Any] = field(default_factory=dict)
    status: str = Trial.PENDING
    last_result: dict[str, Any] = field(default_factory=dict)
    is_saving: bool = False

    @property
    def trial_id(self) -> str:
        """Its id."""
        return trial_id_of(self.number)

    @property
    def is_live(self) -> bool:
        """Whether it holds a slot or waits for one; a paused one does neither."""
        return self.status in (Trial.PENDING, Trial.RUNNING)

    @property
    def is_ended(self) -> bool:
        """Whether its scheduler is done with it."""
        return self.status in (Trial.TERMINATED, Trial.ERROR)


class Scheduling:
    """One scheduler and its trials. Schedulers call it as they would Tune's controller.

    Args:
        scheduler: Any of Tune's, or one with its interface.
        mode: Whether a lower objective is better, `min`, or a higher one, `max`.
        on_changed: Told of a trial that is paused, or in another's turn: it is to go on, or was stopped.
    """

    def __init__(
        self, scheduler: TrialScheduler, *, mode: str, on_changed: Callable[[ScheduledTrial], None] = lambda trial: None
    ) -> None:
        scheduler.set_search_properties(OBJECTIVE, mode)
        # Typed as anything: to Tune we are neither its controller nor its trials.
        self._scheduler: Any = scheduler
        self._on_changed = on_changed
        self._trials: dict[int, ScheduledTrial] = {}
        self._num_live = 0
        self._judged: ScheduledTrial | None = None

    @property
    def num_live(self) -> int:
        """Trials that hold a slot or wait for one."""
        return self._num_live

    def add(self, trial: ScheduledTrial) -> None:
        """Enters a new trial, which is pending until it is chosen."""
        self._trials[trial.number] = trial
        self._num_live += trial.is_live
        self._scheduler.on_trial_add(self, trial)

    def choose(self) -> ScheduledTrial | None:
        """A pending or paused trial that is to run now, if there is one; it runs from here on."""
        trial: ScheduledTrial | None = self._scheduler.choose_trial_to_run(self)
        if trial is not None:
            was_paused = trial.status == Trial.PAUSED
            self._set_status(trial, Trial.RUNNING)
            if was_paused:
                self._on_changed(trial)
        return trial

    def judge(self, trial: ScheduledTrial, result: dict[str, Any]) -> None:
        """Gives a trial's result to the scheduler; the trial's status says what it decided.

        Args:
            trial: A running trial.
            result: Has the scheduler's time and the objective; under `done` whether the trial has ended of itself.
        """
        trial.last_result = result
        self._judged = trial
        decision = TrialScheduler.STOP if result["done"] else self._scheduler.on_trial_result(self, trial, result)
        if decision == TrialScheduler.STOP:
            self.stop_trial(trial)
        elif decision == TrialScheduler.PAUSE:
            self._set_status(trial, Trial.PAUSED)
        self._judged = None

    def get_trials(self) -> list[ScheduledTrial]:
        """For the scheduler: the trials that have not ended; it has been told of the others' ends."""
        return list(self._trials.values())

    def get_live_trials(self) -> list[ScheduledTrial]:
        """For the scheduler: the same ones."""
        return self.get_trials()

    def pause_trial(self, trial: ScheduledTrial, should_checkpoint: bool = True) -> None:
        """For the scheduler: pauses the trial whose result it is judging."""
        self._set_status(trial, Trial.PAUSED)

    def find(self, number: int) -> ScheduledTrial | None:
        """The trial of this number, if it has not ended."""
        return self._trials.get(number)

    def remove(self, trial: ScheduledTrial) -> None:
        """Ends a trial that somebody else has stopped: those that wait for it are decided about without it."""
        self._set_status(trial, Trial.TERMINATED)
        del self._trials[trial.number]
        self._scheduler.on_trial_remove(self, trial)
        self._on_changed(trial)

    def drop(self, trial: ScheduledTrial) -> None:
        """Ends a trial of a search that ends: its scheduler, which is asked nothing more, decides about no others."""
        self._set_status(trial, Trial.TERMINATED)
        del self._trials[trial.number]
        self._on_changed(trial)

    def go_on(self, trial: ScheduledTrial) -> None:
        """Lets a trial run that is pending or paused, whatever its scheduler would choose."""
        self._set_status(trial, Trial.RUNNING)
        self._on_changed(trial)

    def stop_trial(self, trial: ScheduledTrial) -> None:
        """For the scheduler: ends a trial, in any status."""
        if trial.is_ended:
            return
        if trial.status == Trial.RUNNING:
            self._scheduler.on_trial_complete(self, trial, trial.last_result)
        else:
            self._scheduler.on_trial_remove(self, trial)
        self._set_status(trial, Trial.TERMINATED)
        del self._trials[trial.number]
        if trial is not self._judged:
            self._on_changed(trial)

    def _set_status(self, trial: ScheduledTrial, status: str) -> None:
        self._num_live -= trial.is_live
        trial.status = status
        self._num_live += trial.is_live
