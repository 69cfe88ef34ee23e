"""The light Tune trial: passes the reports of a leased trial on, and imports no torch."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from ray import tune

from qlora_ray.orchestration.leased_trial import LeasedTrial, TrialTerms
from qlora_ray.orchestration.trial_port import RayTrialPort
from qlora_ray.training.engine import Report

POINTER_FILE = "trial.json"


class SweepTrial(tune.Trainable):
    """One trial: config {"number", "params"} in, one Tune result per report out.

    A trial never raises for what is the trial's own fault; it ends with a result whose `failure` says what
    happened, so that the study is told the truth and the terminal stays quiet.
    """

    def setup(self, config: dict[str, Any], terms: TrialTerms | None = None, pool: Any = None) -> None:
        """Keeps the terms; the slot is leased in the first step, where waiting holds nobody up."""
        assert terms is not None
        self._terms = terms
        self._port = RayTrialPort(pool)
        self._loop = asyncio.new_event_loop()
        self._trial = self._make_trial(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Ends the trial that was here and takes the next one."""
        self._loop.run_until_complete(self._trial.leave())
        self._trial = self._make_trial(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Waits for the next report; asking for it means go on."""
        trial, report = self._trial, self._loop.run_until_complete(self._trial.next_report())
        lease = trial.lease
        return {
            "number": trial.number,
            "report_index": report.index,
            "is_final": report.is_final,
            "metrics": report.metrics,
            "train_losses": report.train_losses,
            "facts": {**report.facts, **({"executor": lease.facts} if lease else {})},
            "failure": report.failure,
            "waited_s": trial.waited_s,
            "executor": lease.seat_id if lease else None,
            "num_retries": trial.num_retries,
            # What Tune's schedulers compare; a failed trial is worse than any.
            "objective": self._objective(report),
            "done": report.is_final or report.failure is not None,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Points to the state that the executor wrote at the last report, and gives the slot back.

        Tune saves only those that a scheduler pauses, and keeps their actors for others.
        """
        self._loop.run_until_complete(self._trial.leave())
        pointer = {"number": self._trial.number, "last_index": self._trial.last_index}
        (Path(checkpoint_dir) / POINTER_FILE).write_text(json.dumps(pointer), encoding="utf-8")

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        """Goes on from that state, on whichever slot is free."""
        pointer = json.loads((Path(checkpoint_dir) / POINTER_FILE).read_text(encoding="utf-8"))
        self._loop.run_until_complete(self._trial.leave())
        self._trial = self._make_trial({**self.config, "number": pointer["number"]}, last_index=pointer["last_index"])

    def cleanup(self) -> None:
        """Gives the slot back."""
        self._loop.run_until_complete(self._trial.leave())

    def _make_trial(self, config: dict[str, Any], *, last_index: int = 0) -> LeasedTrial:
        return LeasedTrial(
            config["number"], config["params"], terms=self._terms, port=self._port, last_index=last_index
        )

    def _objective(self, report: Report) -> float:
        name, mode = next(iter(self._terms.config.search.objectives.items()))
        value = report.metrics.get(name)
        worst = float("inf") if mode == "min" else float("-inf")
        return worst if report.failure or value is None else value
