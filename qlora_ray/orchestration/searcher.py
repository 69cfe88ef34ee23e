"""Optuna by ask and tell, on a thread of its own: each trial's end is told as what it was."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from qlora_ray.orchestration.ledger import Ledger, Outcome
from qlora_ray.orchestration.trial_entry import CloneOrigin, TrialResult
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.runs.records import TrialStatus
from qlora_ray.search.space import SearchSpace
from qlora_ray.search.study import RESUMED_FROM_ATTRIBUTE, add_clone_trial, count_finished, note_end
from qlora_ray.training.engine import Report

if TYPE_CHECKING:
    import optuna

AnyAnswer = TypeVar("AnyAnswer")


@dataclass(frozen=True)
class AskedTrial:
    """A trial that the study was asked for.

    Attributes:
        params: Values of the search space, by config path.
        ancestors: Numbers of the interrupted trials that it goes on with, the latest first.
        trial: Optuna's; None of a trial that the study knows by its number only.
        clone_of: The trial whose state it goes on from with other values.
    """

    number: int
    params: dict[str, Any]
    ancestors: tuple[int, ...]
    trial: optuna.Trial | None
    clone_of: CloneOrigin | None = None

    @property
    def trial_id(self) -> str:
        """Its id."""
        return trial_id_of(self.number)

    def of(self, origin: CloneOrigin) -> AskedTrial:
        """The same clone, now that its origin is known."""
        return replace(self, clone_of=origin)


@dataclass(frozen=True)
class PlannedClone:
    """A clone that has no number yet; fields as those of AskedTrial."""

    clone_of: CloneOrigin
    params: dict[str, Any]
    ancestors: tuple[int, ...] = ()


class StudySearcher:
    """The study, as the search's loop uses it: what is asked and told is done in that order, while the loop goes on.

    Args:
        study: The study, on disk.
        space: What it searches.
        ledger: Who keeps the trials' books. They are entered at once, by the caller; the study follows.
        num_trials: Trials of the sweep, those finished before a resume included.
        num_slots: Slots to begin with.
        clones: Interrupted ones, which go on before the study is asked.

    Attributes:
        num_left: Trials to be asked for yet, those clones among them.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        space: SearchSpace,
        ledger: Ledger,
        num_trials: int,
        num_slots: int,
        clones: Sequence[PlannedClone] = (),
    ) -> None:
        self._study = study
        self._space = space
        self._ledger = ledger
        # Here, for the reason that the commands import optuna late.
        from qlora_ray.search.journal import journal_of

        self._clones = deque(clones)
        # A sweep that was begun with more trials has none left.
        self.num_left = max(0, num_trials - count_finished(study)) + len(clones)
        self.num_slots = num_slots
        self._trials: dict[int, optuna.Trial] = {}
        self._journal = journal_of(study)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="study")
        self._error: BaseException | None = None

    def has_more(self) -> bool:
        """Whether another trial is to be asked for."""
        return self.num_left > 0 and not self._ledger.is_stopping

    def ask(self) -> Future[AskedTrial]:
        """The next trial, once the study has answered; it is in the books after `open`."""
        self.num_left -= 1
        return self.number_clone(self._clones.popleft()) if self._clones else self._do(self._ask)

    def number_clone(self, planned: PlannedClone) -> Future[AskedTrial]:
        """A clone, once the study has given it a number; no sampler sees more of it."""
        return self._do(self._number_clone, planned)

    def open(self, asked: AskedTrial) -> None:
        """Enters a trial into the books, with the reports of the one that it goes on with."""
        self._ledger.open(asked.number, asked.params, ancestors=asked.ancestors, clone_of=asked.clone_of)
        if asked.trial is None:
            return
        self._trials[asked.number] = asked.trial
        for report_index, value in self._ledger.entries[asked.number].intermediate.items():
            self._tell_report(asked.trial, report_index, value)

    def enter_report(self, result: TrialResult) -> None:
        """Enters a report into the books, and then into the study."""
        self._ledger.report(result)
        index = result.report.index
        value = self._ledger.entries[result.number].intermediate.get(index)
        if value is not None and not result.report.failure and result.number in self._trials:
            self._tell_report(self._trials[result.number], index, value)

    def objective_of(self, report: Report) -> float:
        """What schedulers compare; a failed trial is worse than any."""
        value = report.metrics.get(self._ledger.objective)
        worst = float("inf") if self._ledger.mode == "min" else float("-inf")
        return worst if report.failure or value is None else value

    def close(self, number: int) -> None:
        """Ends a trial in the books as what it was, and tells the study."""
        outcome = self._ledger.close(number)
        if number in self._trials:
            self._do(self._tell_end, self._trials.pop(number), outcome)

    def flush(self) -> None:
        """Waits until the study has been told everything; raises what went wrong there."""
        self._thread.submit(lambda: None).result()
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """As `flush`, and nothing more is asked or told."""
        try:
            self.flush()
        finally:
            self._thread.shutdown()

    def _do(self, work: Callable[..., AnyAnswer], *args: Any) -> Future[AnyAnswer]:
        future = self._thread.submit(self._run, work, args)
        future.add_done_callback(self._keep_error)
        return future

    def _run(self, work: Callable[..., AnyAnswer], args: tuple[Any, ...]) -> AnyAnswer:
        # A study that has missed something is asked and told nothing more: the search ends at its next question.
        if self._error is not None:
            raise self._error
        return work(*args)

    def _keep_error(self, future: Future[Any]) -> None:
        self._error = self._error or future.exception()

    def _ask(self) -> AskedTrial:
        with self._journal.one_write():
            trial = self._study.ask(self._space.distributions())
        return AskedTrial(
            trial.number, self._space.decode(trial.params), tuple(self._ancestors(trial.user_attrs)), trial
        )

    def _number_clone(self, planned: PlannedClone) -> AskedTrial:
        number = add_clone_trial(self._study, cloned_from=planned.clone_of.number)
        return AskedTrial(number, planned.params, planned.ancestors, None, planned.clone_of)

    def _ancestors(self, attributes: dict[str, Any]) -> list[int]:
        """The interrupted trials behind one that goes on, nearest first."""
        found: list[int] = []
        if RESUMED_FROM_ATTRIBUTE not in attributes:
            return found
        trials = self._study.get_trials(deepcopy=False)
        while (number := attributes.get(RESUMED_FROM_ATTRIBUTE)) is not None:
            found.append(number)
            attributes = trials[number].user_attrs
        return found

    def _tell_report(self, trial: optuna.Trial, report_index: int, value: float) -> None:
        # Optuna keeps intermediate values of one objective only.
        if len(self._study.directions) == 1:
            self._do(trial.report, value, report_index)

    def _tell_end(self, trial: optuna.Trial, outcome: Outcome) -> None:
        if outcome.state is TrialStatus.INTERRUPTED:
            return
        with self._journal.one_write():
            note_end(self._study, trial.number, outcome.notes)
            tell_outcome(self._study, trial.number, outcome)


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
    """Tells the study the reports and ends it missed because the driver was killed between record and study."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if trial.number in ledger.entries:
            entry = ledger.entries[trial.number]
            outcome = ledger.outcome_of(entry)
            if outcome.state is not TrialStatus.INTERRUPTED:
                # Optuna keeps intermediate values of one objective only.
                told = trial.intermediate_values if len(study.directions) == 1 else entry.intermediate
                missed = {index: value for index, value in entry.intermediate.items() if index not in told}
                note_end(study, trial.number, outcome.notes, reports=missed)
            tell_outcome(study, trial.number, outcome)
