"""How much each searched parameter moved the loss, by Optuna's own evaluator, read from the journal and only read."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_ray.formats import format_share

if TYPE_CHECKING:
    import optuna

# Optuna's documentation of PED-ANOVA asks for at least 5 trials above the target quantile "to stabilize the analysis".
MIN_TOP_TRIALS = 5
# Half of the trials have to be left for the others.
MIN_TRIALS = 2 * MIN_TOP_TRIALS
# Optuna's default target quantile.
TARGET_QUANTILE = 0.1
FIRST_REPORT = 1


@dataclass(frozen=True)
class Importance:
    """Shares by parameter, largest first, that add up to 1; or why there are none.

    Attributes:
        shares: Empty if `reason` says why.
        basis: Which trials, by which loss.
        num_trials: Trials behind it.
        num_top: The best of them, whose parameters are held against all.
    """

    shares: dict[str, float]
    basis: str = ""
    num_trials: int = 0
    num_top: int = 0
    reason: str | None = None

    def describe(self) -> str:
        """What the shares are of, or why there are none, in words."""
        if self.reason is not None:
            return f"Parameter importance is not shown: {self.reason}."
        first, share = next(iter(self.shares.items()))
        return (
            f"Importance: {first} has {format_share(share, digits=0)} of it. PED-ANOVA (Optuna's) over {self.basis}: "
            f"what sets the best {self.num_top} apart from the rest. With few trials these shares are rough."
        )


def read_importance(journal: Path) -> Importance:
    """The importance of each parameter for the loss, by PED-ANOVA (arXiv 2304.10255).

    fANOVA, the other one that is usual, needs scikit-learn. A scheduler leaves few complete trials, and only good ones;
    where they are too few, all trials are taken at their first report, when all have seen the same number of samples.
    """
    if not journal.is_file():
        return Importance({}, reason=f"{journal.name} is not there")
    try:
        trials = _read_trials(journal)
    except Exception as error:
        # A journal cut in the middle fails in many ways, assertions among them.
        return Importance({}, reason=f"{journal.name} cannot be read: {type(error).__name__}: {error}")
    complete = {trial.number: trial.values[0] for trial in trials if trial.values and trial.state.name == "COMPLETE"}
    first = {
        trial.number: trial.intermediate_values[FIRST_REPORT]
        for trial in trials
        if trial.state.name in ("COMPLETE", "PRUNED") and FIRST_REPORT in trial.intermediate_values
    }
    bases = (
        (complete, "the {} complete trials, by their last loss"),
        (first, "the {} trials that reported, by their loss at the first report, after equally many samples"),
    )
    for losses, basis in bases:
        known = {number: loss for number, loss in losses.items() if math.isfinite(loss)}
        chosen = [(trial, known[trial.number]) for trial in trials if trial.number in known]
        if len(chosen) < MIN_TRIALS:
            continue
        if len(set(known.values())) == 1:
            return Importance({}, reason=f"all {len(chosen)} trials have the same loss")
        return _evaluate(chosen, basis.format(len(chosen)))
    most = max(len(complete), len(first))
    return Importance({}, reason=f"at least {MIN_TRIALS} trials must have reported, got {most}")


def _read_trials(journal: Path) -> list[optuna.trial.FrozenTrial]:
    study = open_journal(journal)
    return [] if study is None else study.get_trials(deepcopy=False)


def open_journal(journal: Path) -> optuna.Study | None:
    """A journal's study, to be read; None if it has none. Raises what Optuna raises where the file is broken."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # The backend takes its lock for writing only, and nothing here writes.
    storage = JournalStorage(JournalFileBackend(str(journal.resolve())))
    names = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=names[0], storage=storage) if names else None


def _evaluate(chosen: list[tuple[optuna.trial.FrozenTrial, float]], basis: str) -> Importance:
    import optuna

    study = optuna.create_study()
    for trial, loss in chosen:
        study.add_trial(optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=loss))
    quantile = max(TARGET_QUANTILE, MIN_TOP_TRIALS / len(chosen))
    with warnings.catch_warnings():
        # Experimental in optuna 4; trials that lack a parameter are warned of too.
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return Importance(
        {name: float(share) for name, share in shares.items()},
        basis=basis,
        num_trials=len(chosen),
        num_top=math.ceil(quantile * len(chosen)),
    )


@dataclass(frozen=True)
class Front:
    """The Pareto front of a search for two objectives.

    Attributes:
        objectives: Their names, the one that decides the winner first.
        numbers: Its trials; empty if `reason` says why.
        reason: Why there is no front.
    """

    objectives: tuple[str, str]
    numbers: frozenset[int] = frozenset()
    reason: str | None = None


def read_front(journal: Path, objectives: tuple[str, str]) -> Front:
    """The front by Optuna's `Study.best_trials`, read from the study's journal and only read."""
    if not journal.is_file():
        return Front(objectives, reason=f"{journal.name} is not there")
    try:
        study = open_journal(journal)
        numbers = frozenset() if study is None else frozenset(trial.number for trial in study.best_trials)
    except Exception as error:
        # A journal cut in the middle fails in many ways, assertions among them.
        return Front(objectives, reason=f"{journal.name} cannot be read: {type(error).__name__}: {error}")
    return Front(objectives, numbers, None if numbers else "no trial is complete")
