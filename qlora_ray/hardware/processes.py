"""Placing trials as processes: each slot is an executor of its own with the single engine and a copy of the base."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qlora_ray.formats import format_gib, plural
from qlora_ray.hardware.fitting import (
    NodeDevice,
    Question,
    Refusal,
    describe_workload,
    find_fitting,
    refuse_slots,
)
from qlora_ray.hardware.memory import MemoryEstimate
from qlora_ray.hardware.memory_counts import CPU_PROCESS_BYTES
from qlora_ray.hardware.plan import Placement
from qlora_ray.hardware.precision import PrecisionChoice
from qlora_ray.hardware.sharing import ExecutorSet, find_most, make_placement
from qlora_ray.hardware.workload import Workload

# Processes on one GPU take turns: more of them gain only what one leaves idle between its kernels, and each pays for a
# base, a context and a start of its own. A choice, not a measurement; cluster.slots_per_device overrides it.
MAX_SLOTS_PER_GPU = 8


@dataclass(frozen=True)
class _SlotCount:
    """How many slots, and which limit set the number."""

    slots: int
    words: str


def place_processes(
    devices: list[NodeDevice], question: Question, precision: PrecisionChoice, *, why: str | None = None
) -> tuple[Placement, list[str]] | Refusal:
    """Place the largest trial on the devices of one class; also notes on devices of it that are too full.

    Args:
        devices: The devices of one class.
        question: The base, the largest trial, and what the config says of the cluster.
        precision: What the class computes in.
        why: Why the trials are no pack, where the config leaves that open.
    """
    workload = describe_workload(devices, question, precision, engine="single")
    found = find_fitting(devices, question, workload)
    if isinstance(found, Refusal):
        return found
    fitting, notes = found
    room_bytes = min(device.free_bytes for device in fitting)
    override = question.cluster.slots_per_device
    max_micro_batch = _find_max_micro_batch(workload, question, room_bytes, num_slots=override or 1)
    if max_micro_batch == 0:
        needed_bytes = question.count_needed_bytes(workload)
        return refuse_slots(
            devices,
            question,
            at_most=int(room_bytes // needed_bytes),
            room_bytes=room_bytes,
            words=f"one trial needs {format_gib(needed_bytes)}",
        )
    workload = replace(workload, micro_batch=max_micro_batch)
    placement = _build_placement(fitting, question, precision, workload, room_bytes)
    return (replace(placement, reason=f"single: {why}; {placement.reason}") if why else placement), notes


def _find_max_micro_batch(workload: Workload, question: Question, room_bytes: int, *, num_slots: int) -> int:
    """Most rows per slot, up to the trial's batch size, with that many slots; 0 if not even one row fits."""

    def fits(micro_batch: int) -> bool:
        return num_slots * question.count_needed_bytes(replace(workload, micro_batch=micro_batch)) <= room_bytes

    return find_most(question.demand.per_device_train_batch_size, fits)


def _build_placement(
    devices: list[NodeDevice], question: Question, precision: PrecisionChoice, workload: Workload, room_bytes: int
) -> Placement:
    demand = question.demand
    estimate = question.estimate(workload)
    count = _count_slots(devices, question, estimate, room_bytes)
    words = [
        f"one trial takes {estimate.describe(safety_factor=question.safety_factor)} of {format_gib(room_bytes)}",
        count.words,
        precision.reason,
    ]
    if workload.micro_batch < demand.per_device_train_batch_size:
        words.append(
            f"{workload.micro_batch} of per_device_train_batch_size {demand.per_device_train_batch_size} rows fit"
        )
    executors = ExecutorSet(
        workload=workload,
        estimate=estimate,
        slots=count.slots,
        processes=count.slots,
        num_threads=_count_threads(devices, question, count.slots),
        max_micro_batch=workload.micro_batch,
        reason="; ".join(words),
    )
    return make_placement(devices, executors, question=question, precision=precision, room_bytes=room_bytes)


def _count_slots(
    devices: list[NodeDevice], question: Question, estimate: MemoryEstimate, room_bytes: int
) -> _SlotCount:
    """The smallest of the limits that memory, CPUs, host RAM and good sense set."""
    cluster = question.cluster
    if cluster.slots_per_device is not None:
        return _SlotCount(cluster.slots_per_device, f"{plural(cluster.slots_per_device, 'slot')}, as the config asks")
    if cluster.packing == "off":
        return _SlotCount(1, "1 slot: packing is off")
    by_memory = int(room_bytes // (estimate.total_bytes * question.safety_factor))
    cpus = min(device.node.num_cpus // (len(device.node.devices) * (cluster.cpus_per_slot or 1)) for device in devices)
    limits = [(by_memory, "memory is the limit"), (max(1, cpus), "CPUs are the limit")]
    if devices[0].profile.kind == "cuda":
        ram = min(device.node.available_ram_bytes // len(device.node.devices) for device in devices)
        limits.append((max(1, ram // CPU_PROCESS_BYTES), "the node's RAM is the limit"))
        limits.append((MAX_SLOTS_PER_GPU, "more processes on one GPU would only take turns"))
    slots, limit = min(limits, key=lambda item: item[0])
    return _SlotCount(slots, f"{plural(slots, 'slot')}: {limit}")


def _count_threads(devices: list[NodeDevice], question: Question, slots: int) -> int:
    """CPU threads of one slot: as the config asks; else one beside a GPU, or a fair share of a CPU node."""
    if question.cluster.cpus_per_slot is not None:
        return question.cluster.cpus_per_slot
    if devices[0].profile.kind == "cuda":
        return 1
    return max(1, min(device.node.num_cpus for device in devices) // slots)
