"""More of a GPU: several executors of a device make room for one with the whole of it, and come back after it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qlora_ray.orchestration.pool.leases import LeaseNeeds
from qlora_ray.orchestration.pool.seats import LIVING, SeatRecord, SeatState
from qlora_ray.orchestration.pool.state import PoolState


@dataclass(eq=False)
class _Room:
    """A device that is being made room on, or has one executor alone for the time being."""

    records: list[SeatRecord]
    temporary: SeatRecord | None = None

    def is_for(self, needs: LeaseNeeds) -> bool:
        """Whether a trial with these needs can use it."""
        return self.records[0].kind.could_fit(needs)


class WholeDevices:
    """Makes room for trials that need a whole device where no executor has one to itself."""

    def __init__(self) -> None:
        self._rooms: list[_Room] = []
        # By node and device: where an executor with the whole device was given up.
        self._failed: set[tuple[str, str]] = set()

    def settle(self, state: PoolState) -> None:
        """Begins and ends rooms, as those who wait need them."""
        wanted = [(needs, number) for needs, number in state.waiting.needs() if needs.whole_device]
        for needs, number in wanted:
            if any(kind.is_whole and not kind.is_temporary and kind.fits(needs) for kind in state.seats.living_kinds()):
                continue
            under_way = sum(room.is_for(needs) and not _is_taken(room) for room in self._rooms)
            for _ in range(number - under_way):
                self._begin(state, needs)
        num_failed = len(self._failed)
        for room in list(self._rooms):
            self._go_on(state, room, [needs for needs, _ in wanted])
        if len(self._failed) > num_failed:
            # On another device, if there is one.
            self.settle(state)
        elif self._failed:
            for needs, _ in wanted:
                self._refuse_failed(state, needs)

    def _begin(self, state: PoolState, needs: LeaseNeeds) -> None:
        """Reserves the device with the fewest trials on it."""
        candidates = [
            record
            for record in state.seats.records.values()
            if record.state in (SeatState.STARTING, SeatState.READY)
            and not record.is_reserved
            and self._can_be_whole(record, needs)
        ]
        devices = {_device_of(record): state.seats.of_device(record.seat) for record in candidates}
        if devices:
            chosen = min(devices.values(), key=lambda records: sum(record.num_used for record in records))
            self._rooms.append(_Room(chosen))
            for record in chosen:
                record.is_reserved = True
                state.seats.note(record)

    def _go_on(self, state: PoolState, room: _Room, wanted: list[LeaseNeeds]) -> None:
        is_wanted = any(room.is_for(needs) for needs in wanted)
        temporary = room.temporary
        is_gone = all(record.state is SeatState.GONE for record in room.records)
        if is_gone or (temporary is None and not is_wanted):
            self._end(state, room)
        elif temporary is None and not any(record.num_used for record in room.records):
            self._clear(state, room)
        elif temporary is not None and temporary.state is SeatState.FAILED:
            self._failed.add(_device_of(temporary))
            self._end(state, room)
        elif temporary is not None and not temporary.num_used and not is_wanted:
            self._end(state, room)

    def _can_be_whole(self, record: SeatRecord, needs: LeaseNeeds) -> bool:
        """Whether a seat's device can be made room on for a trial with these needs."""
        return record.kind.can_be_whole and record.kind.could_fit(needs) and _device_of(record) not in self._failed

    def _refuse_failed(self, state: PoolState, needs: LeaseNeeds) -> None:
        """Tells trials that they wait in vain where every device that would do has failed them."""
        living = [record for record in state.seats.records.values() if record.state in LIVING]
        would_fit = [record for record in living if record.kind.could_fit(needs)]
        if not would_fit or any(record.kind.is_whole or self._can_be_whole(record, needs) for record in would_fit):
            return
        for trial_id in state.waiting.who_needs(needs):
            state.refuse(trial_id, f"no executor with the whole device: {state.cause}", is_about_trial=True)

    def _clear(self, state: PoolState, room: _Room) -> None:
        reason = "its device is made room on for a trial that needs all of it"
        for record in room.records:
            if record.state in (SeatState.STARTING, SeatState.READY):
                state.end(record, SeatState.ASIDE, reason)
        seat = next(record for record in room.records if record.state is not SeatState.GONE).seat
        whole = replace(seat, seat_id=state.next_seat_id, spec=seat.whole_spec, whole_spec=None, is_whole=True)
        room.temporary = state.add_seat(whole, is_temporary=True)
        state.tell("device_cleared", room.temporary, reason, node=seat.node_id)

    def _end(self, state: PoolState, room: _Room) -> None:
        """Gives the device back to the executors that the plan has for it.

        On a draining node there is none to be given: the one with the whole device lets its trial leave.
        """
        self._rooms.remove(room)
        if room.temporary is not None and room.temporary.state not in (SeatState.DRAINING, SeatState.GONE):
            state.end(room.temporary, SeatState.GONE, "its device goes back to the plan's executors")
        for record in room.records:
            record.is_reserved = False
            if record.state is SeatState.ASIDE:
                state.start(record)
            else:
                state.seats.note(record)


def _device_of(record: SeatRecord) -> tuple[str, str]:
    return record.seat.node_id, record.seat.device_id


def _is_taken(room: _Room) -> bool:
    return room.temporary is not None and bool(room.temporary.num_used)
