"""The pool's seats: what is known of each one's executor, who holds its slots, and which seat the next trial gets.

Choosing a seat costs a heap's logarithm of their number; all counts are kept as they change.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from qlora_ray.orchestration.pool.leases import Lease, LeaseNeeds, Seat

# A heap with this many outdated entries per seat is made anew.
MAX_OUTDATED_SHARE = 4


class SeatState(Enum):
    """What the pool knows of a seat's executor."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # ready, on a node that will leave
    ASIDE = "aside"  # ended on purpose: it was idle, or its device is another executor's for a while
    FAILED = "failed"  # given up for good
    GONE = "gone"  # its node has left


# Seats that have an executor, or can have one again.
LIVING = frozenset({SeatState.STARTING, SeatState.READY, SeatState.ASIDE})


@dataclass(frozen=True)
class SeatKind:
    """What seats have in common as far as a trial's needs go.

    Attributes:
        device_class: The class of their device.
        memory_bytes: Its memory.
        is_whole: Whether an executor has its device to itself.
        can_be_whole: Whether the executors of its device can make room for one with the whole device.
        is_temporary: Whether they are such a one, which only trials that need a whole device get.
        is_preferred: Whether trials go there before they go to larger devices.
    """

    device_class: str
    memory_bytes: int
    is_whole: bool
    can_be_whole: bool
    is_temporary: bool
    is_preferred: bool = False

    def fits(self, needs: LeaseNeeds) -> bool:
        """Whether a slot there is what a trial needs."""
        return self._has_device(needs) and (self.is_whole if needs.whole_device else not self.is_temporary)

    def could_fit(self, needs: LeaseNeeds) -> bool:
        """Whether it is, or would be once the device was made room on."""
        return self._has_device(needs) and (self.is_whole or self.can_be_whole or not needs.whole_device)

    def _has_device(self, needs: LeaseNeeds) -> bool:
        return self.memory_bytes >= needs.min_memory_bytes and needs.device_class in (None, self.device_class)


@dataclass(eq=False)
class HeldSlot:
    """A lease that is in force.

    Attributes:
        lease: The lease.
        granted_at: When.
        is_leaving: Whether the executor was asked to evict its trial; the slot is free when it has.
    """

    lease: Lease
    granted_at: float
    is_leaving: bool = False


@dataclass(eq=False)
class SeatRecord:
    """One seat, through all its executors.

    Attributes:
        seat: The plan's part of it.
        is_temporary: Whether it exists for trials that need a whole device, in place of others of its device.
        state: What its executor is.
        incarnation: How many executors it has had.
        restarts: How many of them died since a trial has last ended on one.
        failed_starts: How many died since one was last ready.
        facts: What the executor said of itself.
        held: Slots in force, by trial.
        strangers: Trials that the executor holds without a lease, with their lease numbers.
        is_doubted: Whether the executor refused a trial that it should have had a slot for: nobody is sent there
            until it has been heard again.
        doubted_at: Since when.
        is_reserved: Whether its device is being made room on.
        started_at: When its executor was started.
        idle_since: Since when nobody has held a slot of it.
    """

    seat: Seat
    is_temporary: bool = False
    state: SeatState = SeatState.ASIDE
    incarnation: int = 0
    restarts: int = 0
    failed_starts: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    held: dict[str, HeldSlot] = field(default_factory=dict)
    strangers: dict[str, int] = field(default_factory=dict)
    is_doubted: bool = False
    doubted_at: float = 0.0
    is_reserved: bool = False
    started_at: float = 0.0
    idle_since: float = 0.0
    # The table's own: what of it is in the counts and heaps.
    version: int = 0
    counted: tuple[SeatState, int] | None = None
    kind: SeatKind = field(init=False)

    def __post_init__(self) -> None:
        seat = self.seat
        self.kind = SeatKind(
            seat.device_class,
            seat.memory_bytes,
            seat.is_whole,
            seat.whole_spec is not None,
            self.is_temporary,
            seat.is_preferred,
        )

    @property
    def slots(self) -> int:
        """Trials at once, as its executor said last."""
        return int(self.facts.get("slots", 0))

    @property
    def num_used(self) -> int:
        """Slots that are held, whoever holds them."""
        return len(self.held) + len(self.strangers)

    @property
    def is_open(self) -> bool:
        """Whether a trial can be sent there now."""
        return (
            self.state is SeatState.READY
            and not self.is_doubted
            and not self.is_reserved
            and self.num_used < self.slots
        )

    @property
    def has_executor(self) -> bool:
        """Whether an executor is there or on its way."""
        return self.state in (SeatState.STARTING, SeatState.READY, SeatState.DRAINING)


class SeatTable:
    """All seats. `note(record)` after every change to one keeps counts and choices right.

    Attributes:
        records: Every seat there ever was, by its id.
    """

    def __init__(self) -> None:
        self.records: dict[int, SeatRecord] = {}
        self._states: Counter[SeatState] = Counter()
        self._ready_slots = 0
        self._living: dict[SeatKind, int] = {}
        self._open: dict[SeatKind, list[tuple[float, int, int]]] = {}
        self._sizes: Counter[SeatKind] = Counter()
        # Kinds, preferred ones first, and then the most memory.
        self.kinds: list[SeatKind] = []

    @property
    def ready_slots(self) -> int:
        """Slots of all executors that are ready and stay."""
        return self._ready_slots

    def count(self, state: SeatState) -> int:
        """Seats in a state."""
        return self._states[state]

    @property
    def num_living(self) -> int:
        """Seats that have an executor that stays, or can have one."""
        return sum(self._states[state] for state in LIVING)

    @property
    def num_left(self) -> int:
        """The same, and those whose trials are still leaving."""
        return self.num_living + self._states[SeatState.DRAINING]

    def add(self, record: SeatRecord) -> None:
        """Takes a seat in."""
        kind = record.kind
        self.records[record.seat.seat_id] = record
        self._sizes[kind] += 1
        if kind not in self._open:
            self._open[kind] = []
            self.kinds = sorted(
                self._open, key=lambda kind: (not kind.is_preferred, -kind.memory_bytes, kind.device_class)
            )
        self.note(record)

    def note(self, record: SeatRecord) -> None:
        """Brings counts and choices up to a seat's present state."""
        kind = record.kind
        now = (record.state, record.slots if record.state is SeatState.READY else 0)
        if record.counted != now:
            if record.counted is not None:
                self._count(kind, record.counted, -1)
            self._count(kind, now, 1)
            record.counted = now
        record.version += 1
        if record.is_open:
            heap = self._open[kind]
            heapq.heappush(heap, (record.num_used / record.slots, record.seat.seat_id, record.version))
            if len(heap) > MAX_OUTDATED_SHARE * self._sizes[kind] + MAX_OUTDATED_SHARE:
                heap[:] = [entry for entry in heap if self._is_current(entry)]
                heapq.heapify(heap)

    def find_open(self, kind: SeatKind) -> SeatRecord | None:
        """The open seat of a kind with the smallest share of its slots held, so that all are held evenly."""
        heap = self._open[kind]
        while heap and not self._is_current(heap[0]):
            heapq.heappop(heap)
        return self.records[heap[0][1]] if heap else None

    def living_kinds(self) -> Iterator[SeatKind]:
        """Kinds with a seat that has an executor that stays, or can have one."""
        return (kind for kind, number in self._living.items() if number)

    def of_node(self, node_id: str) -> list[SeatRecord]:
        """The seats of a node that are not gone."""
        return [
            record
            for record in self.records.values()
            if record.seat.node_id == node_id and record.state is not SeatState.GONE
        ]

    def of_device(self, seat: Seat) -> list[SeatRecord]:
        """The plan's seats on a seat's device."""
        return [
            record
            for record in self.of_node(seat.node_id)
            if record.seat.device_id == seat.device_id and not record.is_temporary
        ]

    def _is_current(self, entry: tuple[float, int, int]) -> bool:
        _, seat_id, version = entry
        return self.records[seat_id].version == version

    def _count(self, kind: SeatKind, counted: tuple[SeatState, int], sign: int) -> None:
        state, slots = counted
        self._states[state] += sign
        self._ready_slots += sign * slots
        if state in LIVING:
            self._living[kind] = self._living.get(kind, 0) + sign
