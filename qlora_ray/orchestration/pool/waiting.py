"""The trials that wait for a slot, and which of them gets the next one."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from enum import IntEnum

from qlora_ray.orchestration.pool.events import LeaseAsked
from qlora_ray.orchestration.pool.leases import ANY_DEVICE, LeaseNeeds
from qlora_ray.orchestration.pool.seats import MAX_OUTDATED_SHARE, SeatKind

MIN_HEAP = 64


class Priority(IntEnum):
    """Who comes first."""

    GOES_ON = 0
    NEW = 1


@dataclass(eq=False)
class _Line:
    """Trials of one priority that need the same of a device, from both ends of their sizes.

    Who has left stays in the heaps until it comes up.
    """

    smallest: list[tuple[int, int, str]] = field(default_factory=list)
    largest: list[tuple[int, int, str]] = field(default_factory=list)
    members: dict[str, int] = field(default_factory=dict)

    def add(self, trial_id: str, *, size: int, order: int) -> None:
        self.members[trial_id] = order
        for heap, key in ((self.smallest, size), (self.largest, -size)):
            heapq.heappush(heap, (key, order, trial_id))
            if len(heap) > MAX_OUTDATED_SHARE * len(self.members) + MIN_HEAP:
                heap[:] = [entry for entry in heap if self.members.get(entry[2]) == entry[1]]
                heapq.heapify(heap)

    def first(self, *, is_largest: bool) -> tuple[int, int, str] | None:
        heap = self.largest if is_largest else self.smallest
        while heap and self.members.get(heap[0][2]) != heap[0][1]:
            heapq.heappop(heap)
        return heap[0] if heap else None


class WaitingTrials:
    """First come first served, but for three rules.

    Trials that go on come before new ones. Among those, who needs a certain device gets it before who can take any.
    And on the largest devices the largest trial comes first, on others the smallest.
    """

    def __init__(self) -> None:
        self._asked: dict[str, LeaseAsked] = {}
        self._lines: dict[tuple[Priority, LeaseNeeds], _Line] = {}
        self._num_asked = 0

    def __len__(self) -> int:
        return len(self._asked)

    def __contains__(self, trial_id: object) -> bool:
        return trial_id in self._asked

    def add(self, asked: LeaseAsked) -> None:
        """Puts a trial behind those that came before it."""
        self._num_asked += 1
        self._asked[asked.trial_id] = asked
        line = self._lines.setdefault(_key_of(asked), _Line())
        line.add(asked.trial_id, size=asked.needs.size_bytes, order=self._num_asked)

    def remove(self, trial_id: str) -> bool:
        """Takes a trial out; False if it was not there."""
        asked = self._asked.pop(trial_id, None)
        if asked is None:
            return False
        key = _key_of(asked)
        line = self._lines[key]
        del line.members[trial_id]
        if not line.members:
            del self._lines[key]
        return True

    def first_for(self, kind: SeatKind, *, is_largest: bool) -> str | None:
        """The trial that a free slot of this kind goes to; None where none that waits can use it."""
        for priority in Priority:
            found = []
            for (line_priority, needs), line in self._lines.items():
                if line_priority is priority and kind.fits(needs):
                    first = line.first(is_largest=is_largest)
                    if first is not None:
                        found.append((needs == ANY_DEVICE, first))
            if found:
                return min(found)[1][2]
        return None

    def trial_ids(self) -> list[str]:
        """All of them, in the order in which they came."""
        return list(self._asked)

    def needs(self) -> list[tuple[LeaseNeeds, int]]:
        """What the trials that wait need, sizes left out, and how many need it."""
        return [(needs, len(line.members)) for (_, needs), line in self._lines.items()]

    def who_needs(self, needs: LeaseNeeds) -> list[str]:
        """The trials that need this, in no order."""
        return [trial_id for (_, other), line in self._lines.items() if other == needs for trial_id in line.members]


def _key_of(asked: LeaseAsked) -> tuple[Priority, LeaseNeeds]:
    priority = Priority.GOES_ON if asked.goes_on else Priority.NEW
    return priority, replace(asked.needs, size_bytes=0)
