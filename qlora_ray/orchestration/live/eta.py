"""How long a search still takes: the trials that run and those to come, scheduled on the slots there are."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from qlora_ray.orchestration.live.speed import Speed

# Trials to come that are scheduled one by one, per slot; more only count by their sum.
SCHEDULED_PER_SLOT = 4


@dataclass(frozen=True)
class Load:
    """An executor with its trials.

    Attributes:
        slots: Trials at once.
        left: What each trial on it has still to do, as a share of a whole one.
    """

    speed: Speed
    slots: int
    left: tuple[float, ...] = ()


@dataclass
class _Lane:
    """An executor in the schedule.

    Trials that share it advance alike, so that one number says how far all have come since the beginning, and each
    ends when that number reaches its own.
    """

    load: Load
    ends: list[float] = field(default_factory=list)
    advanced: float = 0.0
    now: float = 0.0

    @property
    def num_free(self) -> int:
        return self.load.slots - len(self.ends)

    def add(self, share: float) -> None:
        heapq.heappush(self.ends, self.advanced + share)

    def next_end(self) -> float:
        return self.now + (self.ends[0] - self.advanced) / self._pace()

    def end_next(self) -> None:
        self.now = self.next_end()
        self.advanced = heapq.heappop(self.ends)

    def _pace(self) -> float:
        return self.load.speed.at(len(self.ends)) / len(self.ends)


def estimate_search_s(loads: Sequence[Load], to_come: Sequence[float]) -> float | None:
    """Seconds until all trials have ended.

    Args:
        loads: The executors.
        to_come: What each trial has to do that is on none, as a share of a whole one, in the order of their turn.

    Returns:
        The time; None where there is work and no slot.
    """
    num_slots = sum(load.slots for load in loads)
    if not num_slots:
        return None if to_come or any(load.left for load in loads) else 0.0
    lanes = [_Lane(load) for load in loads]
    for lane in lanes:
        for share in lane.load.left:
            lane.add(share)
    # In the middle of a long search all slots are full, and only the sum counts.
    num_summed = max(0, len(to_come) - SCHEDULED_PER_SLOT * num_slots)
    pace = sum(load.speed.at(load.slots) for load in loads)
    summed_s = sum(to_come[:num_summed]) / pace
    queue = list(reversed(to_come[num_summed:]))
    free = [(len(lane.ends) / lane.load.slots, at) for at, lane in enumerate(lanes) if lane.num_free > 0]
    heapq.heapify(free)
    while queue and free:
        _, at = heapq.heappop(free)
        lanes[at].add(queue.pop())
        if lanes[at].num_free > 0:
            heapq.heappush(free, (len(lanes[at].ends) / lanes[at].load.slots, at))
    due = [(lane.next_end(), at) for at, lane in enumerate(lanes) if lane.ends]
    heapq.heapify(due)
    now = 0.0
    while due:
        now, at = heapq.heappop(due)
        lane = lanes[at]
        lane.end_next()
        if queue:
            lane.add(queue.pop())
        if lane.ends:
            heapq.heappush(due, (lane.next_end(), at))
    return summed_s + now
