"""MLflow: an experiment per sweep, a run per trial."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from qlora_ray.tracking.tracker import TrackedSweep

# MLflow's own limits: parameters of one call, and characters of a parameter's value.
MAX_PARAMS = 100
MAX_VALUE_CHARS = 500
# Ours to theirs: a pruned trial did what was asked of it.
STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowTracker:
    """See Tracker. Where it writes is MLflow's own setting: MLFLOW_TRACKING_URI.

    Args:
        sweep: The sweep.
    """

    def __init__(self, sweep: TrackedSweep) -> None:
        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(sweep.name)
        self._experiment: str = self._client.create_experiment(sweep.name) if found is None else found.experiment_id
        self._runs: dict[str, str] = {}

    def start_trial(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """See Tracker."""
        run = self._client.create_run(self._experiment, run_name=trial_id).info.run_id
        self._runs[trial_id] = run
        params = [Param(name, str(value)[:MAX_VALUE_CHARS]) for name, value in config.items() if value is not None]
        for begin in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(run, params=params[begin : begin + MAX_PARAMS])

    def log(self, trial_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        now_ms = int(time.time() * 1000)
        figures = [Metric(name, value, now_ms, step) for name, value in metrics.items()]
        self._client.log_batch(self._runs[trial_id], metrics=figures)

    def end_trial(self, trial_id: str, state: str, reason: str, results: Mapping[str, float]) -> None:
        """See Tracker."""
        run = self._runs.pop(trial_id)
        self._client.set_tag(run, "state", state)
        self._client.set_tag(run, "reason", reason)
        self._client.set_terminated(run, status=STATUS[state])

    def close(self) -> None:
        """See Tracker."""
        for run in self._runs.values():
            self._client.set_terminated(run, status=STATUS["interrupted"])
