"""Nodes that leave: at once, or with notice."""

from __future__ import annotations

from qlora_ray.orchestration.pool.actions import PreemptTrial
from qlora_ray.orchestration.pool.events import NodeDraining, NodeGone
from qlora_ray.orchestration.pool.seats import SeatRecord, SeatState
from qlora_ray.orchestration.pool.state import PoolState


class LeavingNodes:
    """Takes the seats of nodes that have left out, and gets the trials off nodes that will leave."""

    def __init__(self) -> None:
        self._deadlines: dict[str, float] = {}

    def lose(self, state: PoolState, event: NodeGone) -> None:
        """Takes all seats of a node out, with one event for the driver."""
        records = state.seats.of_node(event.node_id)
        self._deadlines.pop(event.node_id, None)
        if not records:
            return
        trials = sorted(trial_id for record in records for trial_id in record.held)
        state.cause = event.reason
        for record in records:
            state.end(record, SeatState.GONE, event.reason)
        state.tell_pool("node_lost", event.reason, node=event.node_id, executors=_seat_ids(records), trials=trials)

    def drain(self, state: PoolState, event: NodeDraining) -> None:
        """Has every trial of a node written and put off; a second notice can only make the time shorter."""
        records = state.seats.of_node(event.node_id)
        if not records:
            return
        deadline = state.now + event.deadline_s
        is_known = event.node_id in self._deadlines
        self._deadlines[event.node_id] = min(deadline, self._deadlines.get(event.node_id, deadline))
        if is_known:
            return
        reason = f"node {event.node_id} is draining: {event.reason}"
        state.cause = reason
        for record in records:
            if record.state is not SeatState.READY:
                state.end(record, SeatState.GONE, reason)
                continue
            record.state = SeatState.DRAINING
            state.seats.note(record)
            for held in record.held.values():
                if not held.is_leaving:
                    lease = held.lease
                    state.actions.append(
                        PreemptTrial(lease.seat_id, lease.incarnation, lease.trial_id, lease.number, reason)
                    )
        trials = sorted(trial_id for record in records for trial_id in record.held)
        state.tell_pool("node_draining", reason, node=event.node_id, executors=_seat_ids(records), trials=trials)

    def settle(self, state: PoolState) -> None:
        """Ends the executors of draining nodes that hold nothing any more, or whose time is over."""
        for node_id, deadline in list(self._deadlines.items()):
            records = [r for r in state.seats.of_node(node_id) if r.state is SeatState.DRAINING]
            for record in records:
                if not record.num_used:
                    state.end(record, SeatState.GONE, "its node is drained")
                elif state.now >= deadline:
                    state.end(record, SeatState.GONE, "its node's time to drain is over")
            if all(record.state is SeatState.GONE for record in records):
                del self._deadlines[node_id]
                state.tell_pool("node_drained", "none of its executors is left", node=node_id)

    def next_deadline(self) -> float | None:
        """When the next node's time is over."""
        return min(self._deadlines.values(), default=None)


def _seat_ids(records: list[SeatRecord]) -> list[int]:
    return [record.seat.seat_id for record in records]
