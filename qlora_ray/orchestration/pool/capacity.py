"""What the pool could do with more nodes, and what it can do without: for clusters that grow and shrink."""

from __future__ import annotations

from qlora_ray.orchestration.pool.actions import CapacityWanted, WantCapacity
from qlora_ray.orchestration.pool.leases import ANY_DEVICE
from qlora_ray.orchestration.pool.seats import SeatState
from qlora_ray.orchestration.pool.state import PoolState

# Slots of an executor that starts are not known yet; it counts as one.
SLOTS_OF_A_START = 1


class Capacity:
    """Says what those who wait need beyond the executors there are, and ends executors that nobody uses."""

    def __init__(self) -> None:
        self._wanted: tuple[CapacityWanted, ...] = ()
        self._is_scoring = False

    def begin_scoring(self) -> None:
        """From now on no executor is ended for want of trials, and one is kept although no trial waits for it."""
        self._is_scoring = True

    def settle(self, state: PoolState) -> None:
        """Takes back what was wanted as soon as nobody waits."""
        if self._wanted and not len(state.waiting) and not self._is_scoring:
            self._want(state, ())

    def look(self, state: PoolState) -> None:
        """Looks at all seats: called now and then, not for each event."""
        if len(state.waiting):
            self._wake(state)
            self._want(state, tuple(self._missing(state)))
        elif self._is_scoring:
            self._keep_one(state)
        elif state.terms.idle_timeout_s is not None:
            self._release_idle(state, state.terms.idle_timeout_s)

    def _missing(self, state: PoolState) -> list[CapacityWanted]:
        starting = [record for record in state.seats.records.values() if record.state is SeatState.STARTING]
        missing = []
        for needs, number in state.waiting.needs():
            fitting = [record for record in starting if record.kind.could_fit(needs)]
            starting = [record for record in starting if record not in fitting[:number]]
            if number > len(fitting) * SLOTS_OF_A_START:
                missing.append(CapacityWanted(number - len(fitting) * SLOTS_OF_A_START, needs))
        return missing

    def _want(self, state: PoolState, wanted: tuple[CapacityWanted, ...]) -> None:
        if wanted != self._wanted:
            self._wanted = wanted
            state.actions.append(WantCapacity(wanted))

    def _wake(self, state: PoolState) -> None:
        """Starts executors again that were idle, as many as trials wait."""
        resting = [
            record
            for record in state.seats.records.values()
            if record.state is SeatState.ASIDE and not record.is_reserved
        ]
        for needs, number in state.waiting.needs():
            for record in [record for record in resting if record.kind.could_fit(needs)][:number]:
                resting.remove(record)
                state.start(record)

    def _keep_one(self, state: PoolState) -> None:
        """Where the last executor has gone, starts the largest that was idle, or wants a node that has one."""
        if state.seats.count(SeatState.READY) or state.seats.count(SeatState.STARTING):
            self._want(state, ())
            return
        resting = [record for record in state.seats.records.values() if record.state is SeatState.ASIDE]
        if resting:
            state.start(max(resting, key=lambda record: record.seat.memory_bytes))
        else:
            self._want(state, (CapacityWanted(1, ANY_DEVICE),))

    def _release_idle(self, state: PoolState, idle_timeout_s: float) -> None:
        """Ends idle executors but for one: the winner is scored on it."""
        ready = [record for record in state.seats.records.values() if record.state is SeatState.READY]
        idle = [
            record
            for record in ready
            if not record.num_used and not record.is_reserved and state.now - record.idle_since >= idle_timeout_s
        ]
        if len(idle) == len(ready):
            # The largest stays.
            idle = sorted(idle, key=lambda record: record.seat.memory_bytes)[:-1]
        for record in idle:
            state.end(record, SeatState.ASIDE, "nobody has used it")
            state.tell("executor_released", record, f"nobody has used it for {idle_timeout_s:g} s")
