"""What goes into the pool's state machine, and what comes out: events, actions, and the records that they carry.

All of it is frozen. The machine knows an executor by its seat and incarnation; the actor keeps Ray's handles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Seat:
    """A place for one executor: the plan wants one there, through all its restarts.

    Attributes:
        seat_id: A number that no other seat of this pool has.
        node_id: The Ray node.
        spec: What the executor is started with; the machine only hands it back.
        device_class: The class of the device, as the plan names it.
        memory_bytes: The memory of the whole device.
        device_id: The device, where several executors share it.
        whole_spec: How one executor with the whole device is started, where several executors share it.
        is_whole: Whether the executor has its device to itself and trains one trial.
        is_preferred: Whether trials are to go there first: its class is one of `cluster.prefer_gpu_classes`.
    """

    seat_id: int
    node_id: str
    spec: Any
    device_class: str = ""
    memory_bytes: int = 0
    device_id: str = ""
    whole_spec: Any = None
    is_whole: bool = False
    is_preferred: bool = False


@dataclass(frozen=True)
class LeaseNeeds:
    """What a trial needs of the device that it leases a slot on.

    Attributes:
        size_bytes: How large the trial is; of those that wait, the larger ones go to the larger devices.
        min_memory_bytes: The least memory of the whole device. One more than that of the device on which a trial was
            out of memory asks for a larger one.
        device_class: The only class that will do; None for any.
        whole_device: Whether nothing else may be on the device.
    """

    size_bytes: int = 0
    min_memory_bytes: int = 0
    device_class: str | None = None
    whole_device: bool = False


ANY_DEVICE = LeaseNeeds()


@dataclass(frozen=True)
class Lease:
    """A trial's hold on one slot.

    Attributes:
        trial_id: Whose it is.
        number: Grows from lease to lease of a pool and never repeats. An executor takes a trial in only with a number
            that is not older than the newest one it has seen for that trial.
        seat_id: The seat.
        incarnation: Counts the executors of the seat; this one's number.
        executor: The actor's handle; None inside the machine.
        facts: What the executor is and runs on, at the time of the grant, with `memory_bytes` of its device and
            whether it has that to itself, as `is_whole`.
    """

    trial_id: str
    number: int
    seat_id: int
    incarnation: int
    executor: Any = None
    facts: Mapping[str, Any] = field(default_factory=dict)


# Events: what the machine is told.


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


# Actions: what the machine wants done.


@dataclass(frozen=True)
class StartExecutor:
    """Start an executor, and tell when it is ready."""

    seat_id: int
    incarnation: int
    spec: Any


@dataclass(frozen=True)
class KillExecutor:
    """End an executor at once; one that is dead stays dead. Nothing more is heard of it."""

    seat_id: int
    incarnation: int
    reason: str


@dataclass(frozen=True)
class Grant:
    """Tell a trial that waits that it has a lease."""

    lease: Lease


@dataclass(frozen=True)
class Refuse:
    """Tell a trial that waits that it will get no lease.

    Attributes:
        trial_id: The trial.
        reason: Why.
        is_about_trial: Whether the sweep has executors, but none with what this trial needs. Else none is left at all.
    """

    trial_id: str
    reason: str
    is_about_trial: bool = False


@dataclass(frozen=True)
class EvictTrial:
    """Evict a trial from an executor, and tell when it has left: `Evicted`."""

    seat_id: int
    incarnation: int
    trial_id: str
    lease_number: int


@dataclass(frozen=True)
class PreemptTrial:
    """Have an executor write a trial's state and put it off; the trial's own caller hears why."""

    seat_id: int
    incarnation: int
    trial_id: str
    lease_number: int
    reason: str


@dataclass(frozen=True)
class AskHeartbeat:
    """Ask an executor for a heartbeat, and tell its answer: `Heard`."""

    seat_id: int
    incarnation: int


@dataclass(frozen=True)
class Tell:
    """Append to the events that the driver reads."""

    facts: Mapping[str, Any]


@dataclass(frozen=True)
class CapacityWanted:
    """What no executor is there for or about to be there for.

    Attributes:
        num_trials: How many trials wait so.
        needs: What they need of their devices.
    """

    num_trials: int
    needs: LeaseNeeds


@dataclass(frozen=True)
class WantCapacity:
    """What the trials that wait need beyond the executors there are; empty when nothing is missing."""

    wanted: tuple[CapacityWanted, ...]


Action = StartExecutor | KillExecutor | Grant | Refuse | EvictTrial | PreemptTrial | AskHeartbeat | Tell | WantCapacity
