"""What a study asks: the config's sampler, held to what memory allows and to the space as it is now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import optuna

from qlora_ray.search.grid import AskTellGrid
from qlora_ray.search.memory_limits import MemoryLimits
from qlora_ray.search.space import FIXED, SearchSpace

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState


class StudySampler(optuna.samplers.BaseSampler):
    """A sampler that proposes no setting which is known to be too large.

    Optuna's samplers leave failed trials out, so that what ran out of memory would be proposed again and again. Here a
    proposal that is too large is drawn again, and in the end made just small enough. Until something has run out of
    memory, every call goes to the inner sampler as it comes.

    Args:
        inner: The config's sampler.
        space: The searched parameters.
        study: The study, whose earlier trials count too.
        ran_out_of_memory: Whether a failed trial did.
        max_draws: How often the inner sampler is asked before its proposal is made smaller.
    """

    def __init__(
        self,
        inner: optuna.samplers.BaseSampler,
        *,
        space: SearchSpace,
        study: optuna.Study,
        ran_out_of_memory: Callable[[FrozenTrial], bool],
        max_draws: int,
    ) -> None:
        self.inner = inner
        self._ran_out_of_memory = ran_out_of_memory
        self._space = space
        self._distributions = space.distributions()
        self._max_draws = max_draws
        self._limits = MemoryLimits(space)
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            self._learn(trial, trial.state)
        # Of a parameter whose range changed, Optuna's own look at earlier trials would find no common range.
        self._is_widened = any(
            trial.distributions.get(path) not in (None, distribution)
            for trial in trials
            for path, distribution in self._distributions.items()
        )
        if isinstance(inner, AskTellGrid):
            inner.is_postponed = lambda params: self._limits.is_too_large(space.decode(params))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The inner sampler's, or, where proposals are looked at, all parameters: they are drawn together."""
        if self._has_own_draws(trial):
            return self._distributions
        return self._infer_inner(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The inner sampler's values, or a whole setting that is not too large."""
        if not self._has_own_draws(trial):
            return self.inner.sample_relative(study, trial, search_space)
        inner_space = self._infer_inner(study, trial)
        for _ in range(self._max_draws):
            params = self._draw(study, trial, inner_space)
            settings = self._space.decode(params)
            if not self._limits.is_too_large(settings):
                return params
        smaller = self._limits.shrink(settings)
        return params if smaller is None else self._space.encode(smaller)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The inner sampler's."""
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """The inner sampler's."""
        self.inner.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Learns from the trial's end, and lets the inner sampler do so."""
        self._learn(trial, state)
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """The inner sampler's."""
        self.inner.reseed_rng()

    def _has_own_draws(self, trial: FrozenTrial) -> bool:
        # A queued setting is the user's, or one that was interrupted: it runs as it is. A grid puts points off instead.
        is_queued = FIXED in trial.system_attrs
        return bool(self._limits) and not is_queued and not isinstance(self.inner, AskTellGrid)

    def _infer_inner(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        inferred = self.inner.infer_relative_search_space(study, trial)
        if not self._is_widened or isinstance(self.inner, optuna.samplers.RandomSampler | AskTellGrid):
            return inferred
        # By name, as Optuna's own.
        return {path: one for path, one in sorted(self._distributions.items()) if not one.single()}

    def _draw(
        self, study: optuna.Study, trial: FrozenTrial, inner_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        params = self.inner.sample_relative(study, trial, inner_space)
        return {
            path: params[path] if path in params else self.inner.sample_independent(study, trial, path, distribution)
            for path, distribution in self._distributions.items()
        }

    def _learn(self, trial: FrozenTrial, state: TrialState) -> None:
        if trial.params.keys() != self._distributions.keys():
            return
        if state == optuna.trial.TrialState.FAIL and self._ran_out_of_memory(trial):
            self._limits.add_failed(self._space.decode(trial.params))
        elif state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED):
            self._limits.add_fitting(self._space.decode(trial.params))
