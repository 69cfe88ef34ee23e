"""Which trial gets which slot, and which trial is told that it will get none."""

from __future__ import annotations

from qlora_ray.orchestration.pool.leases import LeaseNeeds
from qlora_ray.orchestration.pool.seats import SeatRecord, SeatState
from qlora_ray.orchestration.pool.state import PoolState


def grant_slots(state: PoolState) -> None:
    """Hands free slots to those who wait: preferred devices first, and then the largest.

    Cost: per lease the logarithm of seats and waiting trials, times the number of device classes.
    """
    max_slots = state.terms.max_slots
    while len(state.waiting) and (max_slots is None or len(state.leases) < max_slots):
        found = _find_pair(state)
        if found is None:
            return
        state.grant(*found)


def is_hopeless(state: PoolState) -> bool:
    """Whether no seat has an executor, or can have one, and no node that joins would change that.

    Seats that were given up count against waiting for nodes: what broke there is no lack of nodes, and an autoscaler
    that sees their nodes idle would bring no others.
    """
    seats = state.seats
    waits = state.terms.waits_for_nodes and not seats.count(SeatState.FAILED)
    return not seats.num_living and not waits


def refuse_hopeless(state: PoolState) -> None:
    """Tells the trials that no executor of the sweep can take that they wait in vain."""
    if not len(state.waiting):
        return
    kinds = list(state.seats.living_kinds())
    for needs, _ in state.waiting.needs():
        if any(kind.could_fit(needs) for kind in kinds):
            continue
        for trial_id in state.waiting.who_needs(needs):
            if kinds:
                state.refuse(trial_id, f"no executor has {describe_needs(needs)}", is_about_trial=True)
            elif is_hopeless(state):
                state.refuse(trial_id, f"no executor is left: {state.cause}")


def describe_needs(needs: LeaseNeeds) -> str:
    """What a trial needs of a device, for people."""
    parts = [
        "a whole device" if needs.whole_device else "a device",
        f"of class {needs.device_class}" if needs.device_class else "",
        f"with at least {needs.min_memory_bytes / 2**30:.1f} GiB" if needs.min_memory_bytes else "",
    ]
    return " ".join(part for part in parts if part)


def _find_pair(state: PoolState) -> tuple[SeatRecord, str] | None:
    largest_bytes = max((kind.memory_bytes for kind in state.seats.living_kinds()), default=0)
    for kind in state.seats.kinds:
        record = state.seats.find_open(kind)
        if record is None:
            continue
        trial_id = state.waiting.first_for(kind, is_largest=kind.memory_bytes == largest_bytes)
        if trial_id is not None:
            return record, trial_id
    return None
