"""What a trial asks of the pool and of its executor, and how those calls end where somebody is gone."""

from __future__ import annotations

from typing import Any, Protocol

from ray.exceptions import RayError, RayTaskError

from qlora_ray.errors import QloraRayError
from qlora_ray.orchestration.actor_calls import ask
from qlora_ray.orchestration.executor.admission import LeaseLost
from qlora_ray.orchestration.pool.leases import ANY_DEVICE, Lease, LeaseNeeds
from qlora_ray.orchestration.ray_errors import describe_death, pool_lost
from qlora_ray.training.engine import Report, TrialSpec


class ExecutorGone(Exception):
    """The executor of a lease has died: a crash, its node, Ray's memory monitor."""


class CallFailed(Exception):
    """An actor raised what is none of our own exceptions.

    Attributes:
        traceback: The actor's own.
    """

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message, traceback)
        self.message = message
        self.traceback = traceback


class TrialPort(Protocol):
    """The calls of a trial. A simulation gives its own, and steps the trial with `send`.

    Those to the pool raise PoolLost where the pool is gone, and those to an executor ExecutorGone. Each may raise
    CallFailed.
    """

    async def lease(self, trial_id: str, *, goes_on: bool, needs: LeaseNeeds = ANY_DEVICE) -> Lease:
        """Waits for a slot; raises NoExecutors if no executor is left to wait for, NoFittingDevice if none fits."""

    async def release(self, lease: Lease, *, refused: bool = False) -> None:
        """Gives a slot back that the trial has lost; `refused` where the executor had none for it."""

    async def end(self, trial_id: str, *, needs_more: str | None = None) -> None:
        """Ends the trial where it is, and gives its slot back; `needs_more` says why it goes on with more memory."""

    async def report_preempted(self, lease: Lease, reason: str) -> None:
        """Gives a slot back from which the trial was preempted."""

    async def report_lost(self, lease: Lease) -> None:
        """Says that the lease's executor is dead."""

    async def admit(self, lease: Lease, spec: TrialSpec) -> None:
        """Has the lease's executor take the trial in; raises LeaseLost, or a kind of it, if it does not."""

    async def next_report(self, lease: Lease, trial_id: str, *, timeout_s: float) -> Report | None:
        """The trial's next report; None if none came in time. Raises LeaseLost, or a kind of it, as `admit`."""


class RayTrialPort:
    """The port over Ray's calls.

    Args:
        pool: The handle of the pool's actor.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        # Per trial: its lease, and how many reports have come by it.
        self._heard: dict[str, tuple[int, int]] = {}

    async def lease(self, trial_id: str, *, goes_on: bool, needs: LeaseNeeds = ANY_DEVICE) -> Lease:
        """See TrialPort."""
        lease: Lease = await _of_pool(self._pool.lease, trial_id, goes_on=goes_on, needs=needs)
        return lease

    async def release(self, lease: Lease, *, refused: bool = False) -> None:
        """See TrialPort."""
        await _of_pool(self._pool.release, lease.trial_id, lease.number, refused=refused)

    async def end(self, trial_id: str, *, needs_more: str | None = None) -> None:
        """See TrialPort."""
        await _of_pool(self._pool.end, trial_id, needs_more=needs_more)

    async def report_preempted(self, lease: Lease, reason: str) -> None:
        """See TrialPort."""
        await _of_pool(self._pool.report_preempted, lease.trial_id, lease.number, reason)

    async def report_lost(self, lease: Lease) -> None:
        """See TrialPort."""
        await _of_pool(self._pool.report_lost, lease.seat_id, lease.incarnation)

    async def admit(self, lease: Lease, spec: TrialSpec) -> None:
        """See TrialPort."""
        await _of_executor(lease.executor.admit, spec, lease.number)

    async def next_report(self, lease: Lease, trial_id: str, *, timeout_s: float) -> Report | None:
        """See TrialPort."""
        number, num_heard = self._heard.get(trial_id, (lease.number, 0))
        num_heard = num_heard if number == lease.number else 0
        report: Report | None = await _of_executor(
            lease.executor.next_report, trial_id, lease.number, timeout_s=timeout_s, num_heard=num_heard
        )
        self._heard[trial_id] = (lease.number, num_heard + (report is not None))
        return report


async def _of_pool(method: Any, *arguments: Any, **named: Any) -> Any:
    try:
        return await ask(method, *arguments, **named)
    except RayTaskError as error:
        raise _own_error(error) from None
    except RayError as error:
        raise pool_lost(error) from None


async def _of_executor(method: Any, *arguments: Any, **named: Any) -> Any:
    try:
        return await ask(method, *arguments, **named)
    except RayTaskError as error:
        raise _own_error(error) from None
    except RayError as error:
        # Not only RayActorError: a kill by Ray's memory monitor, say, is a plain RayError.
        raise ExecutorGone(describe_death(error)) from None


def _own_error(error: RayTaskError) -> Exception:
    """Our own exception out of Ray's wrapping; CallFailed for any other."""
    cause: BaseException = getattr(error, "cause", error)
    if isinstance(cause, QloraRayError | LeaseLost):
        return cause
    return CallFailed(describe_death(error), str(error))
