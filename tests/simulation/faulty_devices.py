"""More rules that are wrong: what trials need of a device, room on devices, idle executors, nodes that leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qlora_ray.orchestration.pool.actions import Refuse
from qlora_ray.orchestration.pool.capacity import Capacity
from qlora_ray.orchestration.pool.events import LeaseAsked, NodeGone
from qlora_ray.orchestration.pool.leases import ANY_DEVICE
from qlora_ray.orchestration.pool.leaving import LeavingNodes
from qlora_ray.orchestration.pool.machine import PoolMachine
from qlora_ray.orchestration.pool.seats import SeatState
from qlora_ray.orchestration.pool.state import PoolState
from qlora_ray.orchestration.pool.whole_device import WholeDevices
from tests.simulation.executor import STEPS_PER_REPORT, Kept, SimulatedExecutor


class ForgetsNeeds(PoolMachine):
    """Sends every trial anywhere."""

    def _ask(self, event: LeaseAsked) -> None:
        super()._ask(replace(event, needs=ANY_DEVICE))


class GivesUpLargeTrials(PoolMachine):
    """Has no more memory for anybody."""

    def _ask(self, event: LeaseAsked) -> None:
        super()._ask(event)
        if event.needs != ANY_DEVICE and event.trial_id in self._state.waiting:
            self._state.waiting.remove(event.trial_id)
            self._state.actions.append(Refuse(event.trial_id, "it is too large", is_about_trial=True))


class RestartsOnDrainingNodes(PoolMachine):
    """Starts an executor again that has died, wherever it was."""

    def _lose(self, record: Any, reason: str, *, is_final: bool = False) -> None:
        if record.state is SeatState.DRAINING:
            record.state = SeatState.READY
        super()._lose(record, reason, is_final=is_final)


class _ClearsNothing(WholeDevices):
    def settle(self, state: PoolState) -> None:
        pass


class _ClearsDevicesInUse(WholeDevices):
    def _go_on(self, state: PoolState, room: Any, wanted: Any) -> None:
        if room.temporary is None:
            self._clear(state, room)
        super()._go_on(state, room, wanted)


class _KeepsClearedDevices(WholeDevices):
    def _end(self, state: PoolState, room: Any) -> None:
        self._rooms.remove(room)
        if room.temporary is not None:
            state.end(room.temporary, SeatState.GONE, "its trial has left")


class _EndsWholeDevicesOfDrainingNodes(WholeDevices):
    def _end(self, state: PoolState, room: Any) -> None:
        if room.temporary is not None and room.temporary.state is SeatState.DRAINING:
            state.end(room.temporary, SeatState.GONE, "its device goes back to the plan's executors")
        super()._end(state, room)


class _ReleasesBusyExecutors(Capacity):
    def _release_idle(self, state: PoolState, idle_timeout_s: float) -> None:
        for record in list(state.seats.records.values()):
            if record.state is SeatState.READY and state.now - record.idle_since >= idle_timeout_s:
                state.end(record, SeatState.ASIDE, "nobody has used it")


class _WakesNobody(Capacity):
    def _wake(self, state: PoolState) -> None:
        pass


class _ForgetsThatDrainingNodesDied(LeavingNodes):
    def lose(self, state: PoolState, event: NodeGone) -> None:
        deadline = self._deadlines.get(event.node_id)
        super().lose(state, event)
        if deadline is not None:
            self._deadlines[event.node_id] = deadline


class StaysWhenAskedToLeave(SimulatedExecutor):
    """Trains on whatever it was asked."""

    def put_off(self, trial_id: str, *, num_steps: int = 0) -> None:
        pass


class DropsStepsOfDrainedTrials(SimulatedExecutor):
    """Puts trials off with the state of their last report."""

    def put_off(self, trial_id: str, *, num_steps: int = 0) -> None:
        super().put_off(trial_id)


class GoesOnFromTheLastReport(SimulatedExecutor):
    """Does not see that a state may be of a step between two reports."""

    def resume_at(self, kept: Kept) -> Kept:
        return Kept(kept.index * STEPS_PER_REPORT, kept.index)


def _with(part: str, make: Callable[[], Any]) -> type[PoolMachine]:
    class Faulty(PoolMachine):
        """A pool with one part that is wrong."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            setattr(self, part, make())

    return Faulty


FAULTY_MACHINES: dict[str, type[PoolMachine]] = {
    **{rule.__name__: rule for rule in (ForgetsNeeds, GivesUpLargeTrials, RestartsOnDrainingNodes)},
    "ClearsNothing": _with("_whole", _ClearsNothing),
    "ClearsDevicesInUse": _with("_whole", _ClearsDevicesInUse),
    "KeepsClearedDevices": _with("_whole", _KeepsClearedDevices),
    "EndsWholeDevicesOfDrainingNodes": _with("_whole", _EndsWholeDevicesOfDrainingNodes),
    "ReleasesBusyExecutors": _with("_capacity", _ReleasesBusyExecutors),
    "WakesNobody": _with("_capacity", _WakesNobody),
    "ForgetsThatDrainingNodesDied": _with("_leaving", _ForgetsThatDrainingNodesDied),
}
FAULTY_EXECUTORS: dict[str, type[SimulatedExecutor]] = {
    rule.__name__: rule for rule in (StaysWhenAskedToLeave, DropsStepsOfDrainedTrials, GoesOnFromTheLastReport)
}
