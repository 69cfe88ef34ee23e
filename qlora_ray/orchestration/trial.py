"""The light Tune trial: leases a slot, passes its reports on, and imports no torch."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError, RayTaskError

from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import NoExecutors, QloraRayError
from qlora_ray.orchestration.executor.admission import LeaseLost, Preempted
from qlora_ray.orchestration.pool import Lease, describe_death
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.search.space import apply_values
from qlora_ray.training.budget import make_budget
from qlora_ray.training.engine import Failure, FailureCause, Report, TrialSpec

# A poll returns at least this often, so that a lease of `lease_timeout_s` is renewed several times.
POLLS_PER_LEASE = 4
POINTER_FILE = "trial.json"


@dataclass(frozen=True)
class TrialTerms:
    """What every trial of a sweep is told."""

    config: SweepConfig
    num_train_rows: int
    pool: Any


class SweepTrial(tune.Trainable):
    """One trial: config {"number", "params"} in, one Tune result per report out.

    A trial never raises for what is the trial's own fault; it ends with a result whose `failure` says what
    happened, so that the study is told the truth and the terminal stays quiet.
    """

    def setup(self, config: dict[str, Any], terms: TrialTerms | None = None) -> None:
        """Keeps the terms; the slot is leased in the first step, where waiting holds nobody up."""
        assert terms is not None
        self._terms = terms
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Ends the trial that was here and takes the next one."""
        self._leave()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Waits for the next report; asking for it means go on."""
        report = self._next_report()
        failure = report.failure
        return {
            "number": self._number,
            "report_index": report.index,
            "is_final": report.is_final,
            "metrics": report.metrics,
            "train_losses": report.train_losses,
            "facts": {**report.facts, **({"executor": self._lease.facts} if self._lease else {})},
            "failure": failure,
            "waited_s": self._waited_s,
            "executor": self._lease.executor_index if self._lease else None,
            "num_retries": self._num_retries,
            # What Tune's schedulers compare; a failed trial is worse than any.
            "objective": self._objective(report),
            "done": report.is_final or failure is not None,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Points to the state that the executor wrote at the last report, and gives the slot back.

        Tune saves only those that a scheduler pauses, and keeps their actors for others.
        """
        self._leave()
        pointer = {"number": self._number, "last_index": self._last_index}
        (Path(checkpoint_dir) / POINTER_FILE).write_text(json.dumps(pointer), encoding="utf-8")

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        """Goes on from that state, on whichever slot is free."""
        pointer = json.loads((Path(checkpoint_dir) / POINTER_FILE).read_text(encoding="utf-8"))
        self._leave()
        self._begin({**self.config, "number": pointer["number"]})
        self._last_index = pointer["last_index"]

    def cleanup(self) -> None:
        """Gives the slot back."""
        self._leave()

    def _begin(self, config: dict[str, Any]) -> None:
        self._number = config["number"]
        self._id = trial_id_of(self._number)
        self._params = config["params"]
        self._lease: Lease | None = None
        self._goes_on = False
        self._waited_s = 0.0
        self._num_retries = 0
        self._last_index = 0

    def _next_report(self) -> Report:
        try:
            while True:
                try:
                    if self._lease is None:
                        self._enter()
                    return self._poll()
                except RayTaskError:
                    raise
                except RayError as error:
                    # The executor is gone, whatever of: a crash, its node, Ray's memory monitor.
                    if self._lease is None:
                        raise
                    _get(self._terms.pool.report_lost.remote(self._lease.executor_index, self._lease.generation))
                    self._retry(describe_death(error))
                except Preempted as error:
                    # For memory, which says nothing about the trial: it goes on in the next free slot.
                    _get(self._terms.pool.report_preempted.remote(self._id, str(error)))
                    self._lease, self._goes_on = None, True
                except LeaseLost as error:
                    # The executor lives; it took this trial's silence (a long pause of its node) for its end.
                    self._retry(str(error))
        except NoExecutors as error:
            return self._failed("lost", error)
        except (QloraRayError, RayError) as error:
            return self._failed("error", error)

    def _failed(self, cause: FailureCause, error: Exception) -> Report:
        return Report(self._id, 0, True, {}, failure=Failure(cause, describe_death(error), str(error)))

    def _enter(self) -> None:
        config = apply_values(self._terms.config, self._params)
        budget = make_budget(
            config.training, num_train_rows=self._terms.num_train_rows, num_reports=config.search.num_reports
        )
        spec = TrialSpec(self._id, config.lora, config.training, budget)
        started = time.monotonic()
        self._lease = _get(self._terms.pool.lease.remote(self._id, goes_on=self._goes_on))
        self._waited_s += time.monotonic() - started
        _get(self._lease.executor.admit.remote(spec))

    def _poll(self) -> Report:
        assert self._lease is not None
        timeout_s = self._terms.config.cluster.lease_timeout_s / POLLS_PER_LEASE
        while True:
            report = _get(self._lease.executor.next_report.remote(self._id, timeout_s=timeout_s))
            # A trial that went on from an earlier state repeats reports that Tune has had already.
            if report is not None and (report.index > self._last_index or report.failure):
                self._last_index = report.index
                return report

    def _retry(self, reason: str) -> None:
        """Goes on elsewhere from the last state, unless this trial has lost its executor too often."""
        _get(self._terms.pool.release.remote(self._id))
        self._lease, self._goes_on = None, True
        self._num_retries += 1
        if self._num_retries > self._terms.config.cluster.max_trial_retries:
            raise NoExecutors(f"its slot was lost {self._num_retries} times; the last time: {reason}")

    def _leave(self) -> None:
        # An actor without a lease has nothing to give back: Tune may have moved its trial to another actor.
        if self._lease is not None:
            _get(self._terms.pool.end.remote(self._id))
            self._lease = None

    def _objective(self, report: Report) -> float:
        name, mode = next(iter(self._terms.config.search.objectives.items()))
        value = report.metrics.get(name)
        worst = float("inf") if mode == "min" else float("-inf")
        return worst if report.failure or value is None else value


def _get(reference: Any) -> Any:
    """ray.get that raises our own exceptions as themselves, out of Ray's wrapping."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, QloraRayError | LeaseLost):
            raise error.cause from None
        raise
