"""What the pool's state machine wants done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_ray.orchestration.pool.leases import Lease, LeaseNeeds


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
