"""TensorBoard: a folder per trial under results/NAME/tensorboard, with the record's values as hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

from qlora_ray.tracking.tracker import TrackedSweep

FOLDER = "tensorboard"
# Of the record, what TensorBoard's hyperparameter page compares: the settings that differ between trials.
COMPARED = "params."


class TensorboardTracker:
    """See Tracker.

    Args:
        sweep: The sweep.
    """

    def __init__(self, sweep: TrackedSweep) -> None:
        self._folder = sweep.folder / FOLDER
        self._writers: dict[str, SummaryWriter] = {}
        self._configs: dict[str, Mapping[str, Any]] = {}

    def start_trial(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """See Tracker."""
        self._writers[trial_id] = SummaryWriter(str(self._folder / trial_id))
        self._configs[trial_id] = config
        rows = [f"| {name} | {value} |" for name, value in config.items()]
        self._writers[trial_id].add_text("record", "\n".join(["| | |", "|---|---|", *rows]))

    def log(self, trial_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        for name, value in metrics.items():
            self._writers[trial_id].add_scalar(name, value, step)

    def end_trial(self, trial_id: str, state: str, reason: str, results: Mapping[str, float]) -> None:
        """See Tracker."""
        writer = self._writers.pop(trial_id)
        writer.add_text("state", f"{state}: {reason}" if reason else state)
        settings = {
            name.removeprefix(COMPARED): value
            for name, value in self._configs.pop(trial_id).items()
            if name.startswith(COMPARED) and value is not None
        }
        # In the trial's own folder, and not in one more beside it.
        writer.add_hparams({**settings, "state": state}, {f"final/{k}": v for k, v in results.items()}, run_name=".")
        writer.close()

    def close(self) -> None:
        """See Tracker."""
        for writer in self._writers.values():
            writer.close()
