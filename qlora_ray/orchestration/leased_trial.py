"""One trial on whichever slots it leases: what it does when a slot is preempted or its executor is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import NoExecutors, QloraRayError
from qlora_ray.orchestration.executor.admission import LeaseLost, Preempted
from qlora_ray.orchestration.executor.launcher import describe_death
from qlora_ray.orchestration.pool import Lease
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.search.space import apply_values
from qlora_ray.training.budget import make_budget
from qlora_ray.training.engine import Failure, FailureCause, Report, TrialSpec

# A poll returns at least this often, so that a lease of `lease_timeout_s` is renewed several times.
POLLS_PER_LEASE = 4


@dataclass(frozen=True)
class TrialTerms:
    """What every trial of a sweep is told."""

    config: SweepConfig
    num_train_rows: int
    pool: Any


def get(reference: Any) -> Any:
    """ray.get that raises our own exceptions as themselves, out of Ray's wrapping."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, QloraRayError | LeaseLost):
            raise error.cause from None
        raise


class LeasedTrial:
    """A trial that asks an executor for its reports, and leases another slot when it has lost the one it had.

    Args:
        number: The trial's number in the study.
        params: Its values of the search space, by config path.
        terms: What every trial is told.
        last_index: The last report that was told already.
        get: Waits for the answer of a call to an actor; tests give their own.

    Attributes:
        lease: Its slot; None while it has none.
        waited_s: Seconds that it has waited for slots.
        num_retries: Slots it has lost.
    """

    def __init__(
        self,
        number: int,
        params: dict[str, Any],
        *,
        terms: TrialTerms,
        last_index: int = 0,
        get: Callable[[Any], Any] = get,
    ) -> None:
        self.number = number
        self.last_index = last_index
        self.lease: Lease | None = None
        self.waited_s = 0.0
        self.num_retries = 0
        self._id = trial_id_of(number)
        self._params = params
        self._terms = terms
        self._get = get
        self._goes_on = False

    def next_report(self) -> Report:
        """Waits for the next report, on whichever executor; asking for it means go on.

        Never raises for what is the trial's own fault, or that of its executors: the report says so.
        """
        try:
            while True:
                try:
                    if self.lease is None:
                        self._enter()
                    return self._poll()
                except RayTaskError:
                    raise
                except RayError as error:
                    # The executor is gone, whatever of: a crash, its node, Ray's memory monitor.
                    if self.lease is None:
                        raise
                    self._get(self._terms.pool.report_lost.remote(self.lease.executor_index, self.lease.generation))
                    self._retry(describe_death(error))
                except Preempted as error:
                    # For memory, which says nothing about the trial: it goes on in the next free slot.
                    self._get(self._terms.pool.report_preempted.remote(self._id, str(error)))
                    self.lease, self._goes_on = None, True
                except LeaseLost as error:
                    # The executor lives; it took this trial's silence (a long pause of its node) for its end.
                    self._retry(str(error))
        except NoExecutors as error:
            return self._failed("lost", error)
        except (QloraRayError, RayError) as error:
            return self._failed("error", error)

    def leave(self) -> None:
        """Ends the trial where it is, and gives its slot back."""
        # An actor without a lease has nothing to give back: Tune may have moved its trial to another actor.
        if self.lease is not None:
            self._get(self._terms.pool.end.remote(self._id))
            self.lease = None

    def _enter(self) -> None:
        config = apply_values(self._terms.config, self._params)
        budget = make_budget(
            config.training, num_train_rows=self._terms.num_train_rows, num_reports=config.search.num_reports
        )
        spec = TrialSpec(self._id, config.lora, config.training, budget)
        started = time.monotonic()
        self.lease = self._get(self._terms.pool.lease.remote(self._id, goes_on=self._goes_on))
        self.waited_s += time.monotonic() - started
        self._get(self.lease.executor.admit.remote(spec))

    def _poll(self) -> Report:
        assert self.lease is not None
        timeout_s = self._terms.config.cluster.lease_timeout_s / POLLS_PER_LEASE
        while True:
            report = self._get(self.lease.executor.next_report.remote(self._id, timeout_s=timeout_s))
            # A trial that went on from an earlier state repeats reports that Tune has had already.
            if report is not None and (report.index > self.last_index or report.failure):
                self.last_index = report.index
                return report

    def _retry(self, reason: str) -> None:
        """Goes on elsewhere from the last state, unless this trial has lost its executor too often."""
        self._get(self._terms.pool.release.remote(self._id))
        self.lease, self._goes_on = None, True
        self.num_retries += 1
        if self.num_retries > self._terms.config.cluster.max_trial_retries:
            raise NoExecutors(f"its slot was lost {self.num_retries} times; the last time: {reason}")

    def _failed(self, cause: FailureCause, error: Exception) -> Report:
        return Report(self._id, 0, True, {}, failure=Failure(cause, describe_death(error), str(error)))
