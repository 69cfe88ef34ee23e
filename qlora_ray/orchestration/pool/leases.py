"""Seats and leases, as the pool's state machine and its callers know them, and what a trial needs of a slot.

The machine knows an executor by its seat and incarnation; the actor keeps Ray's handles.
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
