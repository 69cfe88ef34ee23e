"""What the pool's state machine is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_ray.orchestration.pool.leases import ANY_DEVICE, LeaseNeeds, Seat


@dataclass(frozen=True)
class SeatsAdded:
    """A node is planned: its seats are there to be used."""

    seats: tuple[Seat, ...]


@dataclass(frozen=True)
class NodeGone:
    """A node has left; its executors with it."""

    node_id: str
    reason: str


@dataclass(frozen=True)
class NodeDraining:
    """A node will leave: its trials are to go on elsewhere, and it gets no new ones.

    Attributes:
        node_id: The Ray node.
        reason: Why, for people.
        deadline_s: Seconds after which its executors are ended, whatever they do.
    """

    node_id: str
    reason: str
    deadline_s: float


@dataclass(frozen=True)
class ScoringBegun:
    """The search is over, and the best trials are scored: executors are used though no trial holds a slot of theirs."""


@dataclass(frozen=True)
class NodeNoted:
    """What the driver found of a node: for its books, where it comes in order with all else.

    Attributes:
        event: `node_joined`, `node_left_out`, or `capacity_wanted` of the autoscaler.
        node_id: The Ray node; empty where it is about none.
        reason: Why, for people.
        facts: What belongs to it; JSON values.
    """

    event: str
    node_id: str
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExecutorReady:
    """An executor has loaded its base. `facts` has `slots`, and what its device is."""

    seat_id: int
    incarnation: int
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class SlotsChanged:
    """An executor has more or fewer slots than before, as its new facts say."""

    seat_id: int
    incarnation: int
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class ExecutorDied:
    """An executor is gone, or a trial found it so.

    Attributes:
        seat_id: The seat.
        incarnation: Which of its executors; an older one's death is known already.
        reason: One line.
        is_final: Whether its successor would meet the same: a base that cannot be loaded.
    """

    seat_id: int
    incarnation: int
    reason: str
    is_final: bool = False


@dataclass(frozen=True)
class Heard:
    """An executor's answer to a heartbeat.

    Attributes:
        seat_id: The seat.
        incarnation: Which of its executors.
        asked_at: When it was asked, in the machine's seconds: what happened since need not be in the answer.
        held: Lease numbers by trial: what is admitted there.
        progress: A counter that grows with every bit of work: a micro-batch, an evaluated batch.
        is_training: Whether any of its trials has work to do, or it scores; a trial that waits for its driver has none.
        slots: Its slots now.
    """

    seat_id: int
    incarnation: int
    asked_at: float
    held: Mapping[str, int]
    progress: int
    is_training: bool
    slots: int


@dataclass(frozen=True)
class LeaseAsked:
    """A trial waits for a slot.

    Attributes:
        trial_id: The trial.
        goes_on: Whether it has trained before: such trials come before new ones.
        needs: What it needs of a device.
    """

    trial_id: str
    goes_on: bool = False
    needs: LeaseNeeds = ANY_DEVICE


@dataclass(frozen=True)
class LeaseReleased:
    """A trial is not on its executor any more, which said so itself.

    Attributes:
        trial_id: The trial.
        lease_number: Of the lease that is over; None for whichever it has.
        refused: Whether the executor had no slot for it: then the machine's count of that executor is wrong.
    """

    trial_id: str
    lease_number: int | None = None
    refused: bool = False


@dataclass(frozen=True)
class TrialEnded:
    """A trial wants nothing more of its slot: it is evicted where it is, and the slot is free once it has left.

    Attributes:
        trial_id: The trial.
        needs_more: Why it goes on where there is more memory; None for one that is over or paused.
    """

    trial_id: str
    needs_more: str | None = None


@dataclass(frozen=True)
class TrialPreempted:
    """An executor put a trial off its device, with its state; its slot is free."""

    trial_id: str
    lease_number: int
    reason: str


@dataclass(frozen=True)
class Evicted:
    """An executor has evicted a trial, and will not take it in again with this lease number or an older one."""

    seat_id: int
    incarnation: int
    trial_id: str
    lease_number: int


@dataclass(frozen=True)
class Tick:
    """Nothing but that time has passed."""


Event = (
    SeatsAdded
    | NodeGone
    | NodeDraining
    | NodeNoted
    | ScoringBegun
    | ExecutorReady
    | SlotsChanged
    | ExecutorDied
    | Heard
    | LeaseAsked
    | LeaseReleased
    | TrialEnded
    | TrialPreempted
    | Evicted
    | Tick
)
