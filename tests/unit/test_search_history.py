"""Which trials a sampler looks at, and that a search is as good with them as with all."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from qlora_ray.search.history import BoundedHistory, SteadySampler

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
SPACE: dict[str, optuna.distributions.BaseDistribution] = {
    name: FloatDistribution(-5.0, 5.0) for name in ("a", "b", "c")
}


def make_study(values: list[float | None], *, direction: str = "minimize") -> optuna.Study:
    """A study with these trials; None is a pruned one."""
    study = optuna.create_study(direction=direction, sampler=RandomSampler(seed=1))
    for value in values:
        trial = study.ask(SPACE)
        if value is None:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
    return study


@pytest.mark.parametrize(("direction", "best"), [("minimize", [1, 3]), ("maximize", [0, 2])])
def test_the_best_the_latest_and_those_that_run_are_seen(direction: str, best: list[int]) -> None:
    study = make_study([9.0, 1.0, 8.0, 2.0, 5.0, 4.0, None], direction=direction)
    history = BoundedHistory(num_best=2, num_latest=2)
    history.update(study)
    running = study.ask(SPACE)
    history.update(study)
    assert [trial.number for trial in history.select(None)] == sorted([*best, 5, 6, running.number])
    study.tell(running, state=TrialState.FAIL)
    history.update(study)
    assert [trial.number for trial in history.select(None)] == sorted([*best, 5, 6])
    assert [trial.number for trial in history.select((TrialState.PRUNED,))] == [6]


def test_of_two_objectives_the_best_of_each_are_seen() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    for values in ((1.0, 1.0), (9.0, 9.0), (5.0, 5.0), (6.0, 4.0)):
        study.tell(study.ask(SPACE), values)
    history = BoundedHistory(num_best=2, num_latest=1)
    history.update(study)
    assert [trial.number for trial in history.select(None)] == [0, 1, 3]


def test_a_proposal_has_a_seed_of_its_own_whatever_the_trials_number() -> None:
    def propose(queued_first: bool) -> dict[str, float]:
        study = optuna.create_study(sampler=SteadySampler(RandomSampler(), seed=7))
        study.ask(SPACE)
        if queued_first:
            study.enqueue_trial({"a": 0.0, "b": 0.0, "c": 0.0})
            study.ask(SPACE)
        return study.ask(SPACE).params

    assert propose(True) == propose(False)


def search(num_trials: int, *, seed: int, history: BoundedHistory | None) -> float:
    """The mean value of the last quarter of a search by TPE on a sphere."""
    sampler = SteadySampler(TPESampler(multivariate=True, constant_liar=True), seed=seed, history=history)
    study = optuna.create_study(sampler=sampler)
    values = []
    for _ in range(num_trials):
        trial = study.ask(SPACE)
        values.append(sum((value - 1.0) ** 2 for value in trial.params.values()))
        study.tell(trial, values[-1])
    last = values[-num_trials // 4 :]
    return sum(last) / len(last)


def test_a_search_is_as_good_with_a_bounded_history_as_with_all_of_it() -> None:
    bounded = search(240, seed=1, history=BoundedHistory(num_best=20, num_latest=60))
    random = 3 * (25 / 3 + 1)  # a uniform draw's expected value
    everything = search(240, seed=1, history=None)
    assert bounded < random / 4 and everything < random / 4
