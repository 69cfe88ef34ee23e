"""Optuna by ask and tell, as a Tune Searcher: each trial's end is told as what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

from qlora_ray.orchestration.ledger import Ledger, Outcome
from qlora_ray.runs.records import TrialStatus
from qlora_ray.search.space import SearchSpace
from qlora_ray.search.study import CAUSE_ATTRIBUTE, RESUMED_FROM_ATTRIBUTE, count_finished

if TYPE_CHECKING:
    import optuna


class StudySearcher(Searcher):
    """Asks the study for as many trials as there are slots, and one more that waits with its actor started.

    Args:
        study: The study, on disk.
        space: What it searches.
        ledger: Who keeps the trials' books.
        num_trials: Trials of the sweep, those finished before a resume included.
        num_slots: Slots to begin with.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        space: SearchSpace,
        ledger: Ledger,
        num_trials: int,
        num_slots: int,
    ) -> None:
        super().__init__(metric="objective", mode=ledger.mode)
        self._study = study
        self._space = space
        self._ledger = ledger
        self.num_left = num_trials - count_finished(study)
        self._trials: dict[str, optuna.Trial] = {}
        self.num_slots = num_slots
        self.num_live = 0

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None while enough of them live; FINISHED when all have been asked for."""
        if self.num_left == 0 or self._ledger.is_stopping:
            return Searcher.FINISHED
        if self.num_live > self.num_slots:
            return None
        trial = self._study.ask(self._space.distributions())
        self.num_left -= 1
        self.num_live += 1
        self._trials[trial_id] = trial
        params = self._space.decode(trial.params)
        self._ledger.open(trial.number, params, ancestors=self._ancestors(trial.user_attrs))
        for report_index, value in self._ledger.entries[trial.number].intermediate.items():
            self._report(trial, report_index, value)
        return {"number": trial.number, "params": params}

    def enter_report(self, trial_id: str, result: dict[str, Any]) -> None:
        """Enters a report into the books and, at once, into the study: a killed driver loses none."""
        self._ledger.report(result)
        value = self._ledger.entries[result["number"]].intermediate.get(result["report_index"])
        if value is not None and not result["failure"]:
            self._report(self._trials[trial_id], result["report_index"], value)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the study how the trial ended."""
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        outcome = self._ledger.close(trial.number, crashed=error)
        if outcome.cause and outcome.state is not TrialStatus.INTERRUPTED:
            trial.set_user_attr(CAUSE_ATTRIBUTE, outcome.cause)
        tell_outcome(self._study, trial.number, outcome)
        del self._trials[trial_id]

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is on disk, and a resume starts from it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore, see `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher beside the experiment, and nothing here reads that back."""
        return {}

    def _ancestors(self, attributes: dict[str, Any]) -> list[int]:
        """The interrupted trials behind one that goes on, nearest first."""
        trials = self._study.get_trials(deepcopy=False)
        found: list[int] = []
        while (number := attributes.get(RESUMED_FROM_ATTRIBUTE)) is not None:
            found.append(number)
            attributes = trials[number].user_attrs
        return found

    def _report(self, trial: optuna.Trial, report_index: int, value: float) -> None:
        # Optuna keeps intermediate values of one objective only.
        if len(self._study.directions) == 1:
            trial.report(value, report_index)


def tell_outcome(study: optuna.Study, number: int, outcome: Outcome) -> None:
    """Tells the study a trial's end; interrupted ones are left, `end_interrupted` ends them together.

    Args:
        study: The study.
        number: The trial's number.
        outcome: How it ended, with its objectives where it is complete.
    """
    import optuna

    if outcome.state is TrialStatus.COMPLETE:
        study.tell(number, outcome.values)
    elif outcome.state is TrialStatus.PRUNED:
        study.tell(number, state=optuna.trial.TrialState.PRUNED)
    elif outcome.state is TrialStatus.FAILED:
        study.tell(number, state=optuna.trial.TrialState.FAIL)


def settle_finished(study: optuna.Study, ledger: Ledger) -> None:
    """Tells the study the ends it missed because the driver was killed between record and study."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if trial.number in ledger.entries:
            tell_outcome(study, trial.number, ledger.outcome_of(ledger.entries[trial.number]))
