"""Trackio: a run per trial in the project, all of one sweep in one group."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import trackio

from qlora_ray.tracking.tracker import TrackedSweep

PROJECT = "qlora_ray"


class TrackioTracker:
    """See Tracker. Project and space come from trackio's own variables: TRACKIO_PROJECT, TRACKIO_SPACE_ID, ...

    Args:
        sweep: The sweep.
    """

    def __init__(self, sweep: TrackedSweep) -> None:
        self._sweep = sweep
        self._runs: dict[str, Any] = {}

    def start_trial(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """See Tracker."""
        self._runs[trial_id] = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            group=self._sweep.name,
            name=f"{self._sweep.name}-{trial_id}",
            config=dict(config),
            embed=False,
        )

    def log(self, trial_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        self._runs[trial_id].log(dict(metrics), step=step)

    def end_trial(self, trial_id: str, state: str, reason: str, results: Mapping[str, float]) -> None:
        """See Tracker."""
        run = self._runs.pop(trial_id)
        run.log({f"final/{name}": value for name, value in results.items()})
        run.finish()

    def close(self) -> None:
        """See Tracker."""
        for run in self._runs.values():
            run.finish()
