"""One trial on whichever slots it leases: what it does when a slot is preempted or its executor is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import NoExecutors, NoFittingDevice, PoolLost, QloraRayError
from qlora_ray.hardware.trial_size import TrialSizes
from qlora_ray.modeling.auxiliary_heads import make_specs
from qlora_ray.orchestration.executor.admission import LeaseLost, Preempted, SlotRefused
from qlora_ray.orchestration.memory_ladder import larger_needs, next_needs
from qlora_ray.orchestration.pool.leases import ANY_DEVICE, Lease
from qlora_ray.orchestration.trial_port import CallFailed, ExecutorGone, TrialPort
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.search.space import apply_values
from qlora_ray.training.budget import make_budget
from qlora_ray.training.engine import Failure, FailureCause, Report, TrialSpec

# A poll returns at least this often, so that a lease of `lease_timeout_s` is renewed several times.
POLLS_PER_LEASE = 4
# A trial put off or refused this often before its next report has no room anywhere. Ours: an executor's slots become
# fewer at each preemption, so that more of them need as many executors that are all too small.
MAX_PREEMPTIONS_PER_REPORT = 20


@dataclass(frozen=True)
class TrialTerms:
    """What every trial of a sweep is told.

    Attributes:
        config: The sweep's config.
        num_train_rows: Rows there are to train on.
        sizes: How large a trial is; None where all count as equally large.
        classes: The labels of each auxiliary head, in the order of their numbers.
    """

    config: SweepConfig
    num_train_rows: int
    sizes: TrialSizes | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)


class LeasedTrial:
    """A trial that asks an executor for its reports, and leases another slot when it has lost the one it had.

    It awaits nothing but the methods of its port: whoever steps it decides what a call means.

    Args:
        number: The trial's number in the study.
        params: Its values of the search space, by config path.
        terms: What every trial is told.
        port: Its calls to the pool and to its executor.
        last_index: The last report that was told already.
        clock: Monotonic seconds.

    Attributes:
        id: Its id.
        lease: Its slot; None while it has none.
        waited_s: Seconds that it has waited for slots.
        num_retries: Slots it has lost.
        num_preemptions: Times it was preempted.
    """

    def __init__(
        self,
        number: int,
        params: dict[str, Any],
        *,
        terms: TrialTerms,
        port: TrialPort,
        last_index: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number = number
        self.id = trial_id_of(number)
        self.last_index = last_index
        self.lease: Lease | None = None
        self.waited_s = 0.0
        self.num_retries = 0
        self.num_preemptions = 0
        self._terms = terms
        self._port = port
        self._clock = clock
        self._goes_on = last_index > 0
        self._is_waiting = False
        self._params = params
        self._spec: TrialSpec | None = None
        self._needs = ANY_DEVICE
        # Where it was out of memory last, and what that executor reported.
        self._oom: tuple[Lease, Report] | None = None
        # Since the last report: a trial that makes reports may lose any number of slots in between.
        self._retries_here = 0
        self._preemptions_here = 0

    async def next_report(self) -> Report:
        """Waits for the next report, on whichever executor; asking for it means go on.

        Never raises for what is the trial's own fault, or that of its executors: the report says so.

        Raises:
            PoolLost: If the pool itself is gone.
        """
        try:
            while True:
                try:
                    if self.lease is None:
                        await self._enter()
                    report = await self._poll()
                    if report.failure is None or report.failure.cause != "oom":
                        return report
                    await self._climb(report)
                except NoFittingDevice:
                    # The trial is out of memory there, and this cluster has nothing larger.
                    if self._oom is None:
                        raise
                    lease, report = self._oom
                    if not self._needs.whole_device:
                        return report
                    self._needs = larger_needs(lease, self._needs)
                except ExecutorGone as error:
                    assert self.lease is not None
                    await self._port.report_lost(self.lease)
                    await self._retry(str(error))
                except (Preempted, SlotRefused) as error:
                    # For memory, or since the node leaves, which says nothing about the trial: it goes on in the next
                    # free slot.
                    await self._yield_slot(error)
                except LeaseLost as error:
                    # The executor lives; it took this trial's silence (a long pause of its node) for its end.
                    await self._retry(str(error))
        except PoolLost:
            raise
        except NoExecutors as error:
            return self._failed("lost", str(error))
        except _PreemptedTooOften as error:
            return self._failed("preempted", str(error))
        except CallFailed as error:
            return self._failed("error", error.message, error.traceback)
        except QloraRayError as error:
            return self._failed("error", str(error))

    async def _climb(self, report: Report) -> None:
        """Gives the slot back on which the trial was out of memory, to go on where there is more of it."""
        assert self.lease is not None
        lease, self.lease = self.lease, None
        await self._port.end(self.id, needs_more=report.failure.message if report.failure else "")
        self._needs, self._oom, self._goes_on = next_needs(lease, self._needs), (lease, report), True

    async def leave(self) -> None:
        """Ends the trial where it is, and gives its slot back."""
        # One that was cancelled while it waited for a slot may be granted one yet.
        if self.lease is not None or self._is_waiting:
            self.lease, self._is_waiting = None, False
            self._goes_on = self.last_index > 0
            await self._port.end(self.id)

    async def _enter(self) -> None:
        if self._spec is None:
            self._spec = self._make_spec()
        started = self._clock()
        self._is_waiting = True
        self.lease = await self._port.lease(self.id, goes_on=self._goes_on, needs=self._needs)
        self._is_waiting = False
        self.waited_s += self._clock() - started
        await self._port.admit(self.lease, self._spec)

    def _make_spec(self) -> TrialSpec:
        """What the trial trains; sets how large it is, too."""
        terms = self._terms
        config = apply_values(terms.config, self._params)
        if terms.sizes is not None:
            self._needs = replace(self._needs, size_bytes=terms.sizes.count_bytes(config))
        budget = make_budget(
            config.training, num_train_rows=terms.num_train_rows, num_reports=config.search.num_reports
        )
        return TrialSpec(self.id, config.lora, config.training, budget, make_specs(config.heads, terms.classes))

    async def _poll(self) -> Report:
        assert self.lease is not None
        timeout_s = self._terms.config.cluster.lease_timeout_s / POLLS_PER_LEASE
        while True:
            report = await self._port.next_report(self.lease, self.id, timeout_s=timeout_s)
            # A trial that went on from an earlier state repeats reports that were told already.
            if report is not None and (report.index > self.last_index or report.failure):
                # A failure is of no report: a trial that goes on after it makes the next one.
                self.last_index = max(self.last_index, report.index if report.failure is None else 0)
                self._retries_here = self._preemptions_here = 0
                return report

    async def _yield_slot(self, why: Preempted | SlotRefused) -> None:
        """Gives back the slot that the trial was put out of, unless that has happened too often without a report."""
        assert self.lease is not None
        if isinstance(why, Preempted):
            await self._port.report_preempted(self.lease, str(why))
            self.num_preemptions += 1
        else:
            await self._port.release(self.lease, refused=True)
        self.lease, self._goes_on = None, True
        self._preemptions_here += 1
        if self._preemptions_here > MAX_PREEMPTIONS_PER_REPORT:
            raise _PreemptedTooOften(f"it was put off {self._preemptions_here} times in a row; the last time: {why}")

    async def _retry(self, reason: str) -> None:
        """Goes on elsewhere from the last state, unless this trial has lost its slot too often without a report."""
        assert self.lease is not None
        await self._port.release(self.lease)
        self.lease, self._goes_on = None, True
        self.num_retries += 1
        self._retries_here += 1
        if self._retries_here > self._terms.config.cluster.max_trial_retries:
            raise NoExecutors(f"its slot was lost {self._retries_here} times in a row; the last time: {reason}")

    def _failed(self, cause: FailureCause, message: str, traceback: str = "") -> Report:
        return Report(self.id, 0, True, {}, failure=Failure(cause, message, traceback))


class _PreemptedTooOften(Exception):
    """The trial has no room anywhere for now."""
