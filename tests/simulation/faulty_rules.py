"""Rules that are wrong, one at a time: what the schedules must find, if they are to be worth anything.

`TheOldRules` is what the pool and the executors did before leases had numbers: a trial that came after its lease had
been taken back was let in all the same, the pool sent the next trial to that slot again and again, and each time it was
told that it was "preempted".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qlora_ray.orchestration.pool.machine as machine_module
from qlora_ray.orchestration.executor.admission import Admissions, Preempted
from qlora_ray.orchestration.pool.actions import EvictTrial
from qlora_ray.orchestration.pool.events import ExecutorDied, Heard, NodeDraining, TrialEnded, TrialPreempted
from qlora_ray.orchestration.pool.granting import refuse_hopeless
from qlora_ray.orchestration.pool.machine import PoolMachine
from qlora_ray.orchestration.pool.seats import SeatState
from tests.simulation.executor import SimulatedExecutor
from tests.simulation.faulty_devices import FAULTY_EXECUTORS, FAULTY_MACHINES
from tests.simulation.world import World


class OldAdmissions(Admissions):
    """Knows no lease numbers, and calls a slot that is not there a preemption."""

    def _check_lease(self, trial_id: str, lease_number: int) -> None:
        pass

    def _no_slot(self) -> Any:
        return Preempted(f"all {self._engine.slots} slots are held")


class OldExecutor(SimulatedExecutor):
    """An executor with such admissions."""

    def __init__(self, slots: int, **options: Any) -> None:
        super().__init__(slots, **options)
        self.admissions = OldAdmissions(self.engine)  # type: ignore[arg-type]
        self.admissions.changed.acquire()


class OldReconciler(PoolMachine):
    """Frees the lease of a trial that has not come, and tells the executor nothing."""

    def _heard(self, event: Heard) -> None:
        record = self._state.find_executor(event.seat_id, event.incarnation)
        if record is None or record.state is SeatState.STARTING:
            return
        self._liveness.hear(record, event)
        for trial_id, held in list(record.held.items()):
            is_old = event.asked_at - held.granted_at >= self.terms.lease_timeout_s
            if trial_id not in event.held and is_old:
                self._state.free(trial_id)


class FreesBeforeTheTrialIsOut(PoolMachine):
    """Takes an eviction for done when it is asked for."""

    def _end_trial(self, event: TrialEnded) -> None:
        super()._end_trial(event)
        self._state.free(event.trial_id)


class NeverNoticesSilence(PoolMachine):
    """Waits for an answer for ever."""

    def handle(self, event: Any, *, now: float) -> list[Any]:
        self._liveness._pulses.clear()
        return super().handle(event, now=now)


class RestartsForEver(PoolMachine):
    """Counts no deaths."""

    def _lose(self, record: Any, reason: str, *, is_final: bool = False) -> None:
        record.restarts = record.failed_starts = -1
        super()._lose(record, reason, is_final=is_final)


class LetsTrialsWaitInVain(PoolMachine):
    """Tells nobody that no executor is left."""

    def handle(self, event: Any, *, now: float) -> list[Any]:
        machine_module.refuse_hopeless = lambda state: None
        try:
            return super().handle(event, now=now)
        finally:
            machine_module.refuse_hopeless = refuse_hopeless


class SendsTrialsToDrainingNodes(PoolMachine):
    """Does nothing about a notice until the time is over."""

    def handle(self, event: Any, *, now: float) -> list[Any]:
        return [] if isinstance(event, NodeDraining) else super().handle(event, now=now)


class KeepsSlotsOfPreemptedTrials(PoolMachine):
    """Does not free the slot of a trial that was put off."""

    def _preempted(self, event: TrialPreempted) -> None:
        pass


class RepeatsLeaseNumbers(PoolMachine):
    """All leases have the same number."""

    def handle(self, event: Any, *, now: float) -> list[Any]:
        self._state._num_leases = 0
        return super().handle(event, now=now)


class TakesOldDeathsForNewOnes(PoolMachine):
    """Does not look which of a seat's executors has died."""

    def _died(self, event: ExecutorDied) -> None:
        record = self._state.seats.records[event.seat_id]
        if record.has_executor:
            self._lose(record, event.reason, is_final=event.is_final)


class EvictsNobody(PoolMachine):
    """Never has a trial put out."""

    def handle(self, event: Any, *, now: float) -> list[Any]:
        return [action for action in super().handle(event, now=now) if not isinstance(action, EvictTrial)]


class CountsFreeSlotsTwice(PoolMachine):
    """Sends one trial more than there are slots."""

    def _ready(self, event: Any) -> None:
        super()._ready(event)
        for record in self._state.seats.records.values():
            if "slots" in record.facts:
                record.facts = {**record.facts, "slots": record.facts["slots"] + 1}
                self._state.seats.note(record)


def _forgetful(executor: type[SimulatedExecutor]) -> type[SimulatedExecutor]:
    class Forgetful(executor):  # type: ignore[misc, valid-type]
        """Does not remember which leases are over."""

        def evict(self, trial_id: str, lease_number: int | None = None) -> None:
            super().evict(trial_id, lease_number)
            self.admissions._ended_leases.clear()

    return Forgetful


def make_world(machine: type[PoolMachine] = PoolMachine, executor: Any = SimulatedExecutor) -> Callable[[int], World]:
    """Makes worlds with these rules."""
    return lambda seed: World(seed, machine=machine, executor=executor)


OLD_RULES = make_world(OldReconciler, OldExecutor)
FAULTY_RULES: dict[str, Callable[[int], World]] = {
    **{
        rule.__name__: make_world(rule)
        for rule in (
            FreesBeforeTheTrialIsOut,
            NeverNoticesSilence,
            RestartsForEver,
            LetsTrialsWaitInVain,
            SendsTrialsToDrainingNodes,
            KeepsSlotsOfPreemptedTrials,
            RepeatsLeaseNumbers,
            TakesOldDeathsForNewOnes,
            EvictsNobody,
            CountsFreeSlotsTwice,
        )
    },
    **{name: make_world(rule) for name, rule in FAULTY_MACHINES.items()},
    **{name: make_world(executor=rule) for name, rule in FAULTY_EXECUTORS.items()},
    "AnExecutorThatForgetsEndedLeases": make_world(executor=_forgetful(SimulatedExecutor)),
    "TheOldRules": OLD_RULES,
}
