"""A pool's state machine with seats, executors and trials that a test moves by hand, and a clock of its own."""

from __future__ import annotations

from typing import Any, TypeVar

from qlora_ray.orchestration.pool.actions import Action, EvictTrial, Grant, StartExecutor, Tell
from qlora_ray.orchestration.pool.events import (
    Event,
    Evicted,
    ExecutorDied,
    ExecutorReady,
    Heard,
    LeaseAsked,
    LeaseReleased,
    SeatsAdded,
    Tick,
)
from qlora_ray.orchestration.pool.leases import Lease, Seat
from qlora_ray.orchestration.pool.machine import PoolMachine
from qlora_ray.orchestration.pool.terms import PoolTerms

LEASE_TIMEOUT_S = 60.0
NODE = "node"

AnyAction = TypeVar("AnyAction", bound=Action)


def make_facts(slots: int, **facts: Any) -> dict[str, Any]:
    """What an executor says of itself."""
    return {"device": "fake", "precision_reason": "none", "hostname": "here", "slots": slots, "version": 0, **facts}


class Stage:
    """A machine whose actions are kept; its executors are ready as soon as they are started, unless told otherwise.

    Args:
        *slots: Of each executor of the first node.
        ready: Whether executors are ready at once.
        evicts: Whether they put out at once who is to be put out.
        **terms: Of the machine.

    Attributes:
        actions: All actions so far, in order.
        slots: Of an executor that gets ready, by its seat.
    """

    def __init__(self, *slots: int, ready: bool = True, evicts: bool = True, **terms: Any) -> None:
        self.now = 0.0
        self.machine = PoolMachine(PoolTerms(**{"lease_timeout_s": LEASE_TIMEOUT_S, **terms}))
        self.actions: list[Action] = []
        self.slots = dict(enumerate(slots))
        self._is_ready = ready
        self._evicts = evicts
        if slots:
            self.add(*(Seat(number, NODE, f"spec {number}") for number in self.slots))

    def add(self, *seats: Seat, slots: int | None = None) -> None:
        """Adds seats."""
        if slots is not None:
            self.slots.update({seat.seat_id: slots for seat in seats})
        self.tell(SeatsAdded(seats))

    def tell(self, event: Event) -> list[Action]:
        """Gives the machine an event; returns what it wants done."""
        actions = self.machine.handle(event, now=self.now)
        self.actions += actions
        for action in actions:
            if isinstance(action, StartExecutor) and self._is_ready:
                self.be_ready(action.seat_id, action.incarnation)
            if isinstance(action, EvictTrial) and self._evicts:
                self.tell(Evicted(action.seat_id, action.incarnation, action.trial_id, action.lease_number))
        return actions

    def be_ready(self, seat_id: int, incarnation: int = 1) -> None:
        """An executor is ready."""
        self.tell(ExecutorReady(seat_id, incarnation, make_facts(self.slots.get(seat_id, 1))))

    def die(self, seat_id: int, reason: str = "it died", *, is_final: bool = False) -> None:
        """The present executor of a seat dies."""
        self.tell(ExecutorDied(seat_id, self.incarnation(seat_id), reason, is_final))

    def incarnation(self, seat_id: int) -> int:
        """The number of a seat's present executor."""
        return max(start.incarnation for start in self.of(StartExecutor) if start.seat_id == seat_id)

    def ask(self, trial_id: str, **asked: Any) -> Lease | None:
        """A trial asks for a slot; returns its lease if it has one now."""
        self.tell(LeaseAsked(trial_id, **asked))
        return self.lease_of(trial_id)

    def release(self, trial_id: str, **released: Any) -> None:
        """A trial gives its present slot back, or its place in the queue."""
        self.tell(LeaseReleased(trial_id, **released))

    def lease_of(self, trial_id: str) -> Lease | None:
        """The last lease that a trial was granted."""
        leases = [grant.lease for grant in self.of(Grant) if grant.lease.trial_id == trial_id]
        return leases[-1] if leases else None

    def hear(self, seat_id: int, held: dict[str, int], *, asked_at: float | None = None, **heard: Any) -> None:
        """An executor answers a heartbeat."""
        usual = {"progress": 0, "is_training": False, "slots": self.slots.get(seat_id, 1)}
        asked_at = self.now if asked_at is None else asked_at
        self.tell(Heard(seat_id, self.incarnation(seat_id), asked_at, held, **{**usual, **heard}))

    def pass_time(self, seconds: float, *, step_s: float = 5.0) -> None:
        """Time passes, and the machine is told whenever it wants to be."""
        end = self.now + seconds
        while self.now < end:
            due = self.machine.next_timer()
            self.now = min(end, self.now + step_s, max(self.now, end if due is None else due) or end)
            self.tell(Tick())

    def of(self, kind: type[AnyAction]) -> list[AnyAction]:
        """All actions of a kind so far."""
        return [action for action in self.actions if isinstance(action, kind)]

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """What the driver was told: all, or events of one name."""
        told = [dict(tell.facts) for tell in self.of(Tell)]
        return [event for event in told if name in (None, event["event"])]
