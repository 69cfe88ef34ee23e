"""Seats of the executors that a plan wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qlora_ray.hardware import Placement
from qlora_ray.orchestration.executor.launcher import ExecutorSpec
from qlora_ray.orchestration.pool.leases import Seat


def make_seats(specs: Sequence[ExecutorSpec], *, first_id: int) -> tuple[Seat, ...]:
    """One seat for each executor, numbered from `first_id`."""
    return tuple(_make_seat(seat_id, spec) for seat_id, spec in enumerate(specs, start=first_id))


def take_whole_device(placement: Placement) -> Placement:
    """The placement of one executor that has to itself what several have together."""
    share = placement.executors_per_device
    cap = placement.memory_cap_fraction
    return replace(
        placement,
        slots_per_device=1,
        num_gpus=1.0,
        num_cpus=placement.num_cpus * share,
        num_threads=placement.num_threads * share,
        memory_cap_fraction=None if cap is None else min(1.0, cap * share),
        needed_bytes=placement.needed_bytes * share,
        reason=f"the whole device, for a trial that was out of memory on a share of it; {placement.reason}",
    )


def _make_seat(seat_id: int, spec: ExecutorSpec) -> Seat:
    placement = spec.placement
    # A packed engine sheds its trials by itself until one is alone; processes each have a fixed share.
    is_shared = placement.engine == "single" and placement.executors_per_device > 1 and placement.num_gpus > 0
    return Seat(
        seat_id,
        spec.node_id,
        spec,
        device_class=placement.device_class,
        memory_bytes=placement.available_bytes,
        device_id=spec.device,
        whole_spec=replace(spec, placement=take_whole_device(placement)) if is_shared else None,
        is_whole=placement.slots_per_device == 1,
        is_preferred=placement.is_preferred,
    )
