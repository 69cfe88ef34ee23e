"""How the trials of a sweep stand: which run, how many ended how, and which is best, kept as each of them ends."""

from __future__ import annotations

import bisect
from collections import Counter

from qlora_ray.orchestration.trial_entry import TrialEntry
from qlora_ray.runs.records import TrialStatus


class Standings:
    """Counts and ranks trials; an end costs the same however many there are.

    Args:
        mode: Whether the lowest value is best, `min`, or the highest, `max`.
    """

    def __init__(self, *, mode: str) -> None:
        self._sign = 1.0 if mode == "min" else -1.0
        self._ended: Counter[TrialStatus] = Counter()
        self._ranked: list[tuple[float, int, TrialEntry]] = []
        self._running: dict[int, TrialEntry] = {}

    @property
    def num_ended(self) -> int:
        """Trials that have ended, in whatever way."""
        return self._ended.total()

    @property
    def best(self) -> TrialEntry | None:
        """The best complete trial."""
        return self._ranked[0][2] if self._ranked else None

    def open(self, entry: TrialEntry) -> None:
        """A trial runs from now on."""
        self._running[entry.number] = entry

    def end(self, entry: TrialEntry, value: float | None) -> None:
        """A trial has ended, in its state; a complete one with a value is ranked, of equal ones the earlier first."""
        self._running.pop(entry.number, None)
        self._ended[entry.state] += 1
        if entry.state is TrialStatus.COMPLETE and value is not None:
            bisect.insort(self._ranked, (self._sign * value, entry.number, entry), key=lambda each: each[:2])

    def running(self) -> list[TrialEntry]:
        """Trials that have not ended."""
        return list(self._running.values())

    def ranked(self) -> list[TrialEntry]:
        """Complete trials, best first."""
        return [entry for _, _, entry in self._ranked]

    def num_in(self, *states: TrialStatus) -> int:
        """Trials that ended in one of these states."""
        return sum(self._ended[state] for state in states)

    def counts(self) -> dict[str, int]:
        """Trials by state, without the states that none is in."""
        counted = {**self._ended, TrialStatus.RUNNING: len(self._running)}
        return {state: counted[state] for state in TrialStatus if counted.get(state)}
