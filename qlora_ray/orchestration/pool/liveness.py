"""Whether executors live, work, and hold what the pool thinks they hold: heartbeats and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_ray.orchestration.pool.actions import AskHeartbeat, EvictTrial
from qlora_ray.orchestration.pool.events import Heard
from qlora_ray.orchestration.pool.seats import SeatRecord, SeatState
from qlora_ray.orchestration.pool.state import PoolState

# Of the time between two looks no more than this many intervals count: what froze the pool froze the answers too.
MAX_INTERVALS_COUNTED = 2


@dataclass
class _Pulse:
    """What was heard of one executor.

    Attributes:
        incarnation: Which of its seat's executors.
        is_asked: Whether an answer is awaited.
        silent_s: How long it has been awaited.
        progress: The counter at the last answer.
        is_training: Whether it had work then.
        stalled_s: How long the counter has stood still while there was work; of one that starts, since its start.
    """

    incarnation: int
    is_asked: bool = False
    silent_s: float = 0.0
    progress: int = -1
    is_training: bool = False
    stalled_s: float = 0.0


class Liveness:
    """Asks every executor for heartbeats, all at once, and says which are lost."""

    def __init__(self) -> None:
        self._pulses: dict[int, _Pulse] = {}
        self._looked_at: float | None = None

    def look(self, state: PoolState) -> list[tuple[SeatRecord, str]]:
        """Asks all executors that are to be asked.

        Returns:
            The executors that are lost, each with the reason.
        """
        interval_s = state.terms.heartbeat_interval_s
        passed_s = 0.0 if self._looked_at is None else state.now - self._looked_at
        counted_s = min(passed_s, MAX_INTERVALS_COUNTED * interval_s)
        self._looked_at = state.now
        lost = []
        for record in state.seats.records.values():
            if not record.has_executor:
                self._pulses.pop(record.seat.seat_id, None)
                continue
            pulse = self._pulse_of(record)
            reason = self._judge(record, pulse, state, counted_s)
            if reason is not None:
                lost.append((record, reason))
            elif record.state is not SeatState.STARTING and not pulse.is_asked:
                pulse.is_asked = True
                state.actions.append(AskHeartbeat(record.seat.seat_id, record.incarnation))
        return lost

    def ask_now(self, record: SeatRecord, state: PoolState) -> None:
        """Asks one executor at once."""
        pulse = self._pulse_of(record)
        if not pulse.is_asked:
            pulse.is_asked = True
            state.actions.append(AskHeartbeat(record.seat.seat_id, record.incarnation))

    def hear(self, record: SeatRecord, heard: Heard) -> None:
        """Takes note of an answer."""
        pulse = self._pulse_of(record)
        pulse.is_asked = False
        pulse.silent_s = 0.0
        if heard.progress != pulse.progress or not heard.is_training:
            pulse.stalled_s = 0.0
        pulse.progress, pulse.is_training = heard.progress, heard.is_training

    def _pulse_of(self, record: SeatRecord) -> _Pulse:
        pulse = self._pulses.get(record.seat.seat_id)
        if pulse is None or pulse.incarnation != record.incarnation:
            pulse = self._pulses[record.seat.seat_id] = _Pulse(record.incarnation)
        return pulse

    def _judge(self, record: SeatRecord, pulse: _Pulse, state: PoolState, counted_s: float) -> str | None:
        terms = state.terms
        if record.state is SeatState.STARTING:
            pulse.stalled_s += counted_s
            if pulse.stalled_s > terms.progress_timeout_s:
                return f"it was not ready {terms.progress_timeout_s:g} s after its start"
            return None
        if pulse.is_asked:
            pulse.silent_s += counted_s
        if pulse.is_training:
            pulse.stalled_s += counted_s
        if pulse.silent_s > terms.heartbeat_timeout_s:
            return f"it has not answered for {terms.heartbeat_timeout_s:g} s"
        if pulse.stalled_s > terms.progress_timeout_s:
            return f"it is at work and has made no progress for {terms.progress_timeout_s:g} s"
        return None


def settle_held(record: SeatRecord, heard: Heard, state: PoolState) -> None:
    """Brings the pool's leases of one executor in line with what it really holds.

    A lease whose trial has not come in time is taken back, and a trial without a lease is put out. Both by the
    executor: a slot is free when it has said so, and a trial that comes late finds its lease number refused there.
    """
    for trial_id, held in record.held.items():
        is_old = heard.asked_at - held.granted_at >= state.terms.lease_timeout_s
        if heard.held.get(trial_id) != held.lease.number and is_old:
            state.evict(held)
    strangers = {
        trial_id: number
        for trial_id, number in heard.held.items()
        if trial_id not in record.held or record.held[trial_id].lease.number > number
    }
    for trial_id, number in strangers.items():
        if record.strangers.get(trial_id) != number:
            state.actions.append(EvictTrial(record.seat.seat_id, record.incarnation, trial_id, number))
    # One whose trial has a newer lease here is in that one's slot.
    record.strangers = {trial_id: number for trial_id, number in strangers.items() if trial_id not in record.held}
    if record.slots != heard.slots:
        record.facts = {**record.facts, "slots": heard.slots}
    record.is_doubted = record.is_doubted and heard.asked_at < record.doubted_at
    state.seats.note(record)
