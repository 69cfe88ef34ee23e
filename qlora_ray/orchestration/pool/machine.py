"""The pool as a state machine: events and time in, actions out. It knows no Ray, no event loop, no thread, no clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qlora_ray.orchestration.pool.actions import Action, Grant
from qlora_ray.orchestration.pool.capacity import Capacity
from qlora_ray.orchestration.pool.events import (
    Event,
    Evicted,
    ExecutorDied,
    ExecutorReady,
    Heard,
    LeaseAsked,
    LeaseReleased,
    NodeDraining,
    NodeGone,
    NodeNoted,
    ScoringBegun,
    SeatsAdded,
    SlotsChanged,
    Tick,
    TrialEnded,
    TrialPreempted,
)
from qlora_ray.orchestration.pool.granting import grant_slots, is_hopeless, refuse_hopeless
from qlora_ray.orchestration.pool.leaving import LeavingNodes
from qlora_ray.orchestration.pool.liveness import Liveness, settle_held
from qlora_ray.orchestration.pool.seats import SeatRecord, SeatState
from qlora_ray.orchestration.pool.state import PoolState
from qlora_ray.orchestration.pool.terms import MAX_FAILED_STARTS, MAX_RESTARTS, PoolTerms
from qlora_ray.orchestration.pool.whole_device import WholeDevices


class PoolMachine:
    """Keeps executors on its seats, and grants leases of their slots.

    Everything that it knows comes in by `handle`, in the order in which it happened; what it returns is to be done in
    the order in which it is returned. A granted lease is in force until its slot is free: until the executor or the
    trial itself says that the trial is not there any more, or the executor is gone.

    Args:
        terms: Its limits.
    """

    def __init__(self, terms: PoolTerms) -> None:
        self.terms = terms
        self._state = PoolState(terms)
        self._liveness = Liveness()
        self._leaving = LeavingNodes()
        self._whole = WholeDevices()
        self._capacity = Capacity()
        self._next_look: float | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            SeatsAdded: self._add_seats,
            NodeGone: lambda event: self._leaving.lose(self._state, event),
            NodeDraining: lambda event: self._leaving.drain(self._state, event),
            NodeNoted: self._note_node,
            ScoringBegun: lambda event: self._capacity.begin_scoring(),
            ExecutorReady: self._ready,
            SlotsChanged: self._change_slots,
            ExecutorDied: self._died,
            Heard: self._heard,
            LeaseAsked: self._ask,
            LeaseReleased: self._release,
            TrialEnded: self._end_trial,
            TrialPreempted: self._preempted,
            Evicted: self._evicted,
            Tick: lambda event: None,
        }

    @property
    def next_seat_id(self) -> int:
        """A number for a new seat."""
        return self._state.next_seat_id

    @property
    def is_hopeless(self) -> bool:
        """Whether no executor is left to wait for."""
        return is_hopeless(self._state)

    @property
    def cause(self) -> str:
        """Why the last executor was lost."""
        return self._state.cause

    def ready_executors(self) -> list[tuple[int, int, dict[str, Any]]]:
        """Seat, incarnation and facts of every executor that is ready."""
        return [
            (record.seat.seat_id, record.incarnation, dict(record.facts))
            for record in self._state.seats.records.values()
            if record.state is SeatState.READY
        ]

    def has_seats(self, node_id: str) -> bool:
        """Whether a node has seats that are not gone."""
        return bool(self._state.seats.of_node(node_id))

    @property
    def waiting_trials(self) -> list[str]:
        """Trials that wait for a slot, or for their last one to be free."""
        return [*self._state.waiting.trial_ids(), *self._state.parked]

    def describe_seats(self) -> list[dict[str, Any]]:
        """Where every seat that is not gone is, what its executor is, and who holds its slots: for people."""
        return [
            {
                "executor": record.seat.seat_id,
                "incarnation": record.incarnation,
                "node_id": record.seat.node_id,
                "device_id": record.seat.device_id,
                "hostname": record.facts.get("hostname") or record.seat.device_id.rsplit(":", 1)[0],
                "device": record.facts.get("device") or record.seat.device_class,
                "device_class": record.facts.get("device_class") or record.seat.device_class,
                "engine": record.facts.get("engine"),
                "estimated_memory_bytes": record.facts.get("estimated_memory_bytes"),
                "trials": sorted(record.held),
                "state": record.state.value,
                "slots": record.slots,
                "used": record.num_used,
            }
            for record in self._state.seats.records.values()
            if record.state is not SeatState.GONE
        ]

    def handle(self, event: Event, *, now: float) -> list[Action]:
        """What is to be done when something has happened.

        Args:
            event: What has happened.
            now: Seconds on a clock that never goes back.
        """
        state = self._state
        state.now = now
        state.actions = []
        self._handlers[type(event)](event)
        if self._next_look is None or now >= self._next_look:
            self._next_look = now + state.terms.heartbeat_interval_s
            for record, reason in self._liveness.look(state):
                self._lose(record, reason)
            self._capacity.look(state)
        self._leaving.settle(state)
        grant_slots(state)
        self._whole.settle(state)
        refuse_hopeless(state)
        self._capacity.settle(state)
        return state.actions

    def next_timer(self) -> float | None:
        """When `Tick` is due, whatever else comes before."""
        times = [time for time in (self._next_look, self._leaving.next_deadline()) if time is not None]
        return min(times, default=None)

    def _add_seats(self, event: SeatsAdded) -> None:
        for seat in event.seats:
            self._state.add_seat(seat)

    def _note_node(self, event: NodeNoted) -> None:
        self._state.tell_pool(event.event, event.reason, node=event.node_id, **event.facts)

    def _ready(self, event: ExecutorReady) -> None:
        record = self._state.find_executor(event.seat_id, event.incarnation)
        if record is None or record.state is not SeatState.STARTING:
            return
        record.state, record.facts, record.idle_since = SeatState.READY, event.facts, self._state.now
        record.failed_starts = 0
        self._state.seats.note(record)
        self._state.tell("executor_ready", record, f"{event.facts['device']}, {event.facts['precision_reason']}")

    def _change_slots(self, event: SlotsChanged) -> None:
        record = self._state.find_executor(event.seat_id, event.incarnation)
        if record is not None:
            record.facts = event.facts
            self._state.seats.note(record)
            self._state.tell("slots_changed", record, event.facts["slots_reason"], slots=event.facts["slots"])

    def _died(self, event: ExecutorDied) -> None:
        record = self._state.find_executor(event.seat_id, event.incarnation)
        if record is not None:
            self._lose(record, event.reason, is_final=event.is_final)

    def _lose(self, record: SeatRecord, reason: str, *, is_final: bool = False) -> None:
        """An executor is gone, or as good as that: the seat gets another, unless it has lost too many."""
        state = self._state
        state.cause = reason
        was = record.state
        if was is SeatState.STARTING:
            record.failed_starts += 1
        else:
            record.restarts += 1
        if was is SeatState.DRAINING:
            state.end(record, SeatState.GONE, reason)
            state.tell("executor_lost", record, reason)
        elif is_final or record.restarts > MAX_RESTARTS or record.failed_starts > MAX_FAILED_STARTS:
            # An error of ours (a base that cannot be loaded) would come again.
            state.end(record, SeatState.FAILED, reason)
            state.tell("executor_failed", record, reason)
        else:
            state.end(record, SeatState.ASIDE, reason)
            state.tell("executor_lost", record, reason)
            state.start(record)

    def _heard(self, event: Heard) -> None:
        record = self._state.find_executor(event.seat_id, event.incarnation)
        if record is not None and record.state is not SeatState.STARTING:
            self._liveness.hear(record, event)
            settle_held(record, event, self._state)

    def _ask(self, event: LeaseAsked) -> None:
        state = self._state
        held = state.leases.get(event.trial_id)
        if held is not None and held.is_leaving:
            self._state.parked[event.trial_id] = event
        elif held is not None:
            state.actions.append(Grant(held.lease))
        elif event.trial_id not in state.waiting:
            state.waiting.add(event)

    def _release(self, event: LeaseReleased) -> None:
        state = self._state
        held = state.leases.get(event.trial_id)
        if event.lease_number is None:
            self._state.parked.pop(event.trial_id, None)
            state.waiting.remove(event.trial_id)
        elif held is None or held.lease.number != event.lease_number:
            return
        if held is not None:
            record = state.record_of(held)
            self._state.free(event.trial_id)
            if event.refused:
                record.is_doubted, record.doubted_at = True, state.now
                state.seats.note(record)
                self._liveness.ask_now(record, state)

    def _end_trial(self, event: TrialEnded) -> None:
        self._state.parked.pop(event.trial_id, None)
        self._state.waiting.remove(event.trial_id)
        held = self._state.leases.get(event.trial_id)
        if held is not None:
            record = self._state.record_of(held)
            if event.needs_more is None:
                # It works: in a long sweep every executor dies a few times.
                record.restarts = 0
            else:
                self._state.tell("trial_needs_more_memory", record, event.needs_more, trial=event.trial_id)
            self._state.evict(held)

    def _preempted(self, event: TrialPreempted) -> None:
        held = self._state.leases.get(event.trial_id)
        if held is None or held.lease.number != event.lease_number:
            return
        self._state.tell("trial_preempted", self._state.record_of(held), event.reason, trial=event.trial_id)
        self._state.free(event.trial_id)

    def _evicted(self, event: Evicted) -> None:
        record = self._state.find_executor(event.seat_id, event.incarnation)
        if record is None:
            return
        if record.strangers.get(event.trial_id, event.lease_number + 1) <= event.lease_number:
            del record.strangers[event.trial_id]
            self._state.seats.note(record)
        held = record.held.get(event.trial_id)
        if held is not None and held.is_leaving and held.lease.number == event.lease_number:
            self._state.free(event.trial_id)
