"""What a pool knows at one moment, and the steps that all of its rules are made of."""

from __future__ import annotations

from typing import Any

from qlora_ray.orchestration.pool.actions import Action, EvictTrial, Grant, KillExecutor, Refuse, StartExecutor, Tell
from qlora_ray.orchestration.pool.events import LeaseAsked
from qlora_ray.orchestration.pool.leases import Lease, Seat
from qlora_ray.orchestration.pool.seats import HeldSlot, SeatRecord, SeatState, SeatTable
from qlora_ray.orchestration.pool.terms import PoolTerms
from qlora_ray.orchestration.pool.waiting import WaitingTrials


class PoolState:
    """Seats, leases and those who wait; every step adds the actions that follow from it.

    Args:
        terms: The pool's limits.

    Attributes:
        now: Seconds, as the event under way has them.
        seats: The seats.
        waiting: The trials that wait for a slot.
        leases: Every slot that is held, by trial.
        parked: Who has asked for a slot while an executor is still putting it out of its last one.
        actions: What is to be done for the event under way.
        cause: Why the last executor was lost.
        next_seat_id: A number that no seat has yet.
    """

    def __init__(self, terms: PoolTerms) -> None:
        self.terms = terms
        self.now = 0.0
        self.seats = SeatTable()
        self.waiting = WaitingTrials()
        self.leases: dict[str, HeldSlot] = {}
        self.parked: dict[str, LeaseAsked] = {}
        self.actions: list[Action] = []
        self.cause = "none was started"
        self.next_seat_id = 0
        self._num_leases = 0

    def record_of(self, held: HeldSlot) -> SeatRecord:
        """The seat of a held slot."""
        return self.seats.records[held.lease.seat_id]

    def find_executor(self, seat_id: int, incarnation: int) -> SeatRecord | None:
        """A seat whose executor is still this one."""
        record = self.seats.records[seat_id]
        return record if record.incarnation == incarnation and record.has_executor else None

    def add_seat(self, seat: Seat, *, is_temporary: bool = False) -> SeatRecord:
        """Takes a seat in, and starts its executor."""
        record = SeatRecord(seat, is_temporary)
        self.next_seat_id = max(self.next_seat_id, seat.seat_id + 1)
        self.seats.add(record)
        self.start(record)
        return record

    def start(self, record: SeatRecord) -> None:
        """Starts an executor on a seat that has none."""
        record.state = SeatState.STARTING
        record.incarnation += 1
        record.started_at = self.now
        record.is_doubted = False
        self.seats.note(record)
        self.actions.append(StartExecutor(record.seat.seat_id, record.incarnation, record.seat.spec))

    def end(self, record: SeatRecord, state: SeatState, reason: str) -> None:
        """Ends a seat's executor; the trials that held slots of it lose them."""
        if record.has_executor:
            # Also one that is only cut off: it would keep its share of the device, and its successor would wait for
            # ever. First of all, so that none of its trials goes on elsewhere while it is still there.
            self.actions.append(KillExecutor(record.seat.seat_id, record.incarnation, reason))
        for trial_id in list(record.held):
            self.free(trial_id, reason)
        record.strangers.clear()
        record.state = state
        self.seats.note(record)

    def grant(self, record: SeatRecord, trial_id: str) -> None:
        """Gives a trial that waits a slot."""
        self.waiting.remove(trial_id)
        self._num_leases += 1
        facts = {**record.facts, "memory_bytes": record.seat.memory_bytes, "is_whole": record.seat.is_whole}
        lease = Lease(trial_id, self._num_leases, record.seat.seat_id, record.incarnation, facts=facts)
        held = HeldSlot(lease, self.now)
        self.leases[trial_id] = record.held[trial_id] = held
        self.seats.note(record)
        self.tell("trial_leased", record, "a slot is free", trial=trial_id, lease=lease.number)
        self.actions.append(Grant(lease))

    def free(self, trial_id: str, reason: str = "") -> None:
        """Takes a trial's slot from it, if it has one. The trial is not on the executor any more, or that is gone."""
        held = self.leases.pop(trial_id, None)
        if held is not None:
            record = self.record_of(held)
            del record.held[trial_id]
            if not record.held:
                record.idle_since = self.now
            self.seats.note(record)
            self.tell("trial_released", record, reason, trial=trial_id, lease=held.lease.number)
            parked = self.parked.pop(trial_id, None)
            if parked is not None:
                self.waiting.add(parked)

    def evict(self, held: HeldSlot) -> None:
        """Asks the executor to put a trial out. Its slot is not free before the executor says that it has."""
        if not held.is_leaving:
            held.is_leaving = True
            lease = held.lease
            self.actions.append(EvictTrial(lease.seat_id, lease.incarnation, lease.trial_id, lease.number))

    def refuse(self, trial_id: str, reason: str, *, is_about_trial: bool = False) -> None:
        """Tells a trial that waits that it gets no lease."""
        self.waiting.remove(trial_id)
        self.actions.append(Refuse(trial_id, reason, is_about_trial))

    def tell(self, event: str, record: SeatRecord, reason: str, **facts: Any) -> None:
        """Tells the driver what has happened to a seat."""
        self.tell_pool(event, reason, executor=record.seat.seat_id, hostname=record.facts.get("hostname"), **facts)

    def tell_pool(self, event: str, reason: str, **facts: Any) -> None:
        """Tells the driver what has happened."""
        slots, max_slots = self.seats.ready_slots, self.terms.max_slots
        self.actions.append(
            Tell(
                {
                    "event": event,
                    "reason": reason,
                    "ready_slots": slots if max_slots is None else min(slots, max_slots),
                    "num_failed": self.seats.count(SeatState.FAILED),
                    "num_left": self.seats.num_left,
                    **facts,
                }
            )
        )
