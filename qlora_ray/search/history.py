"""What a sampler looks at: the best trials and the latest ones, so that a proposal costs the same after 5,000 trials.

A sampler proposes by the study's content and a seed of the proposal's own. So the same seed gives the same settings,
also where a sweep was killed and resumed in between, as far as the trials before have the same values.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.study import StudyDirection
from optuna.trial import TrialState

from qlora_ray.search.space import DRAWS_AS, FIXED

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

# Where the parts of a sampler are defined that may hold generators.
SAMPLER_MODULES = ("optuna.samplers", "qlora_ray.search")


class BoundedHistory:
    """The trials of a study that are worth a look, brought up to date by reading each finished trial once.

    Args:
        num_best: Complete trials that are kept for their value; of two objectives, half of them for each.
        num_latest: Trials that ended last, which are kept whatever they are worth.
    """

    def __init__(self, *, num_best: int, num_latest: int) -> None:
        self._num_best = num_best
        # Per objective, best first.
        self._best: list[list[tuple[float, int, FrozenTrial]]] = []
        self._latest: deque[FrozenTrial] = deque(maxlen=num_latest)
        self._running: dict[int, FrozenTrial] = {}
        self._num_seen = 0
        # Proposals among the trials up to each one that still runs or was seen.
        self.num_proposed = 0

    def update(self, study: optuna.Study) -> None:
        """Takes in what has happened in the study since the last time."""
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        signs = [-1.0 if direction is StudyDirection.MAXIMIZE else 1.0 for direction in study.directions]
        open_before = [trials[number] for number in self._running]
        for trial in [*open_before, *trials[self._num_seen :]]:
            if trial.number >= self._num_seen and FIXED not in trial.system_attrs:
                self.num_proposed += 1
            self._running.pop(trial.number, None)
            if not trial.state.is_finished():
                self._running[trial.number] = trial
            elif trial.state is not TrialState.FAIL:
                self._finish(trial, signs)
        self._num_seen = len(trials)

    def select(self, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """The trials that a sampler sees, by number."""
        seen = {trial.number: trial for trial in self._latest}
        seen.update((number, trial) for best in self._best for _, number, trial in best)
        seen.update(self._running)
        return [seen[number] for number in sorted(seen) if states is None or seen[number].state in states]

    def _finish(self, trial: FrozenTrial, signs: list[float]) -> None:
        self._latest.append(trial)
        if trial.state is not TrialState.COMPLETE:
            return
        self._best = self._best or [[] for _ in signs]
        for best, sign, value in zip(self._best, signs, trial.values, strict=True):
            bisect.insort(best, (sign * value, trial.number, trial), key=lambda each: each[:2])
            del best[self._num_best // len(signs) :]


class _SeenStudy:
    """A study of which only a history's trials are seen."""

    def __init__(self, study: optuna.Study, history: BoundedHistory) -> None:
        self._seen_study = study
        self._history = history

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen_study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return self._history.select(states)

    get_trials = _get_trials

    @property
    def trials(self) -> list[FrozenTrial]:
        return self._history.select(None)


class SteadySampler(optuna.samplers.BaseSampler):
    """A sampler of Optuna's with a seed of its own for each proposal, and, where it is bounded, a history.

    Args:
        sampler: What proposes.
        seed: The sweep's.
        history: What it looks at; None: at all trials of the study.
    """

    def __init__(
        self, sampler: optuna.samplers.BaseSampler, *, seed: int, history: BoundedHistory | None = None
    ) -> None:
        self.sampler = sampler
        self._seed = seed
        self._history = history
        # For the number of proposals, where the sampler itself looks at everything.
        self._counted = history or BoundedHistory(num_best=0, num_latest=0)

    def reseed_rng(self) -> None:
        """See BaseSampler."""
        self.sampler.reseed_rng()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Sets the seed of this proposal: by how many came before it, not by the trial's number.

        A trial that goes on with an interrupted one has a new number and proposes nothing.
        """
        self._counted.update(study)
        is_proposal = FIXED not in trial.system_attrs
        place = self._counted.num_proposed - 1 if is_proposal else trial.number
        is_proposal, place = trial.user_attrs.get(DRAWS_AS, (is_proposal, place))
        generators = list(_find_generators(self.sampler))
        # A word each: generators with one seed between them would draw alike.
        words = np.random.SeedSequence([self._seed, int(is_proposal), place]).generate_state(len(generators))
        for generator, word in zip(generators, words, strict=True):
            generator.rng.seed(int(word))
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See BaseSampler."""
        return self.sampler.infer_relative_search_space(self._see(study), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See BaseSampler."""
        return self.sampler.sample_relative(self._see(study), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See BaseSampler."""
        return self.sampler.sample_independent(self._see(study), trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """See BaseSampler."""
        self.sampler.after_trial(study, trial, state, values)

    def _see(self, study: optuna.Study) -> Any:
        return study if self._history is None else _SeenStudy(study, self._history)


def draws_of(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> list[int]:
    """By what SteadySampler sets the seed of a trial's draws, for DRAWS_AS: whether it is a proposal, and its place.

    Args:
        trial: The trial.
        trials: All of the study, by number.
    """
    is_proposal = FIXED not in trial.system_attrs
    before = sum(FIXED not in other.system_attrs for other in trials[: trial.number])
    found: list[int] = trial.user_attrs.get(DRAWS_AS, [int(is_proposal), before if is_proposal else trial.number])
    return found


def _find_generators(owner: Any) -> Iterator[LazyRandomState]:
    """Every random generator of a sampler and of the parts that it is made of, always in the same order."""
    for name in sorted(vars(owner)):
        value = getattr(owner, name)
        if isinstance(value, LazyRandomState):
            yield value
        elif type(value).__module__.startswith(SAMPLER_MODULES) and hasattr(value, "__dict__"):
            yield from _find_generators(value)
