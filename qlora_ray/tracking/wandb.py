"""Weights & Biases: a run per trial in the project, all of one sweep in one group."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import wandb

from qlora_ray.tracking.tracker import TrackedSweep

PROJECT = "qlora_ray"


class WandbTracker:
    """See Tracker. Project, entity and key come from wandb's own variables: WANDB_PROJECT, WANDB_MODE, ...

    Args:
        sweep: The sweep.
    """

    def __init__(self, sweep: TrackedSweep) -> None:
        self._sweep = sweep
        self._runs: dict[str, wandb.Run] = {}

    def start_trial(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """See Tracker."""
        self._runs[trial_id] = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self._sweep.name,
            name=f"{self._sweep.name}/{trial_id}",
            config=dict(config),
            dir=str(self._sweep.folder),
            # Trials run at once.
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, trial_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        # A metric of its own: wandb drops what comes with a smaller step of its own count, as after a restart.
        self._runs[trial_id].log({**metrics, "trainer/step": step})

    def end_trial(self, trial_id: str, state: str, reason: str, results: Mapping[str, float]) -> None:
        """See Tracker."""
        run = self._runs.pop(trial_id)
        run.summary.update({**results, "state": state, "reason": reason})
        run.finish(exit_code=1 if state == "failed" else 0)

    def close(self) -> None:
        """See Tracker."""
        for run in self._runs.values():
            run.finish(exit_code=1)
