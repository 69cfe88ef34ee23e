"""A walk over a grid by ask and tell. Optuna 5.0's GridSampler raises outside `study.optimize`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

GRID_ID = "grid_id"


class AskTellGrid(optuna.samplers.GridSampler):
    """Optuna's GridSampler, which would raise after its last point, and for a partial one.

    Args:
        grid: The values of each parameter, as Optuna stores them.
        seed: Shuffles the points. The sweep's own, also when it is resumed: trials hold the numbers of their points.

    Attributes:
        is_postponed: Whether a point is left for the end, when no other is left.
    """

    def __init__(self, grid: Mapping[str, Sequence[Any]], *, seed: int) -> None:
        super().__init__(grid, seed=seed)
        self.is_postponed: Callable[[dict[str, Any]], bool] = lambda params: False
        self._fallback = optuna.samplers.RandomSampler(seed=seed)

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Gives the trial the first point that no other has and that is not postponed."""
        super().before_trial(study, trial)
        own = study._storage.get_trial_system_attrs(trial._trial_id).get(GRID_ID)
        if own is None or GRID_ID in trial.system_attrs:
            return
        taken = {
            other.system_attrs[GRID_ID]
            for other in study.get_trials(deepcopy=False)
            if GRID_ID in other.system_attrs and other.number != trial.number
        }
        free = [grid_id for grid_id in range(len(self._all_grids)) if grid_id not in taken]
        at_once = [grid_id for grid_id in free if not self.is_postponed(self._params_of(grid_id))]
        if at_once or free:
            study._storage.set_trial_system_attr(trial._trial_id, GRID_ID, (at_once or free)[0])

    def after_trial(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the base class stops a loop that is not there. The sweep counts its trials itself."""

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: optuna.distributions.BaseDistribution,
    ) -> Any:
        """The grid point's value, or any value for what an enqueued setting leaves open."""
        if GRID_ID in trial.system_attrs:
            return super().sample_independent(study, trial, param_name, param_distribution)
        return self._fallback.sample_independent(study, trial, param_name, param_distribution)

    def _params_of(self, grid_id: int) -> dict[str, Any]:
        return dict(zip(self._param_names, self._all_grids[grid_id], strict=True))
