"""Who is in the engine: what other threads ask for, and what the training thread then does about it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import Failure, FailureCause, Report, TrialSpec
from qlora_ray.training.packed.trial import PackedTrial


@dataclass(eq=False)
class Seat:
    """A trial from admission to eviction. A trial that comes again has another seat.

    Attributes:
        trial: There once the training thread has taken the trial in.
        is_waiting: At a report.
        is_reporting: Its report is being made: it is evaluated, and does not train meanwhile.
        has_ended: It trains no further, whatever it is told; it waits to be evicted.
    """

    spec: TrialSpec
    state: TrialState | None
    trial: PackedTrial | None = None
    is_waiting: bool = False
    is_reporting: bool = False
    has_ended: bool = False

    @property
    def report_index(self) -> int:
        """Reports made so far."""
        if self.trial is not None:
            return self.trial.report_index
        return self.state.report_index if self.state is not None else 0


@dataclass
class Roster:
    """The seats, behind one lock."""

    num_slots: int
    _seats: dict[str, Seat] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, spec: TrialSpec, state: TrialState | None) -> None:
        """Gives a trial a seat; raises RuntimeError if none is free."""
        with self._lock:
            if len(self._seats) >= self.num_slots:
                raise RuntimeError(
                    f"packed engine: all {self.num_slots} slots are held, by trials {', '.join(self._seats)}, "
                    f"got {spec.trial_id}"
                )
            self._seats[spec.trial_id] = Seat(spec, state)

    def proceed(self, trial_id: str) -> None:
        """A trial that waits trains on."""
        with self._lock:
            seat = self._seats.get(trial_id)
            if seat is not None and not seat.has_ended:
                seat.is_waiting = False

    def evict(self, trial_id: str) -> None:
        """A trial leaves."""
        with self._lock:
            self._seats.pop(trial_id, None)

    def find(self, trial_id: str) -> Seat:
        """A trial's seat; raises RuntimeError if it has none."""
        with self._lock:
            if trial_id not in self._seats:
                raise RuntimeError(f"packed engine: trial {trial_id} is not here")
            return self._seats[trial_id]

    def holds(self, seat: Seat) -> bool:
        """Whether this very seat is still taken."""
        with self._lock:
            return self._seats.get(seat.spec.trial_id) is seat

    def coming(self) -> list[Seat]:
        """Seats of trials to be taken in."""
        with self._lock:
            return [seat for seat in self._seats.values() if seat.trial is None and not seat.has_ended]

    def running(self) -> list[Seat]:
        """Seats of trials that train, oldest first."""
        with self._lock:
            return [seat for seat in self._seats.values() if seat.trial is not None and not seat.is_waiting]

    def wait(self, seat: Seat, *, has_ended: bool = False) -> None:
        """A trial waits from now on."""
        with self._lock:
            seat.is_waiting, seat.has_ended = True, has_ended

    def fail(
        self, seat: Seat, cause: FailureCause, message: str, trace: str = "", *, facts: dict[str, Any] | None = None
    ) -> Report:
        """A trial's last report. One that was put out for memory goes on elsewhere or later: it is not final."""
        self.wait(seat, has_ended=True)
        failure = Failure(cause, message, trace or message)
        return Report(seat.spec.trial_id, seat.report_index, cause != "evicted", {}, facts or {}, failure)
