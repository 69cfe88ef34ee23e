"""How many trials fit on which device, and in which precision: a pure function of profiles, model and config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qlora_ray.config.schema import Cluster, Quantization
from qlora_ray.errors import PlacementError
from qlora_ray.hardware.fitting import (
    Question,
    Seat,
    describe_workload,
    find_eval_batch,
    find_max_micro_batch,
    find_problem,
)
from qlora_ray.hardware.memory import CPU_PROCESS_BYTES, MemoryEstimate, Workload, estimate_memory, format_gib
from qlora_ray.hardware.plan import Placement, Plan, TrialDemand, largest_divisor
from qlora_ray.hardware.precision import Precision, choose_precision
from qlora_ray.hardware.probe import NodeProfile
from qlora_ray.hardware.shape import ModelShape

# Processes on one GPU take turns: more of them gain only what one leaves idle between its kernels, and each pays for a
# base, a context and a start of its own. A choice, not a measurement; cluster.slots_per_device overrides it.
MAX_SLOTS_PER_GPU = 8
RESOURCE_DECIMALS = 4  # Ray counts resources in units of 1e-4 (ray 2.60, FixedPoint)
# Trial actors and Ray tasks need a little of a CPU beside the executors, or they would wait for ever.
RESERVED_CPUS_PER_NODE = 0.1


@dataclass(frozen=True)
class _Refusal:
    """Why a device class gets no placement. `estimate` is there when memory is the reason."""

    words: str
    seat: Seat
    estimate: MemoryEstimate | None = None


@dataclass(frozen=True)
class _SlotCount:
    """How many slots, and which limit set the number."""

    slots: int
    words: str


def plan_placements(
    nodes: Sequence[NodeProfile],
    *,
    shape: ModelShape,
    demand: TrialDemand,
    cluster: Cluster,
    quantization: Quantization,
    precision_requested: str = "auto",
) -> Plan:
    """Plan the largest trial of a sweep on every device class of a cluster.

    Args:
        nodes: What probe_node found, one per node.
        shape: The base's sizes.
        demand: The largest trial.
        cluster: The config's cluster section.
        quantization: The config's model.quantization section.
        precision_requested: The config's training.precision.

    Raises:
        PlacementError: No device has room for one trial, or the config asks for what no device has.
    """
    question = Question(shape, demand, cluster, quantization, precision_requested)
    if cluster.packing == "off" and (cluster.slots_per_device or 1) > 1:
        raise PlacementError(
            f"cluster.slots_per_device must be 1 with packing: off, got {cluster.slots_per_device}. Drop one of them."
        )
    # A head node that Ray was given no CPUs of runs nothing.
    idle = [node.hostname for node in nodes if node.num_cpus < 1]
    seats = [Seat(device, node) for node in nodes if node.num_cpus >= 1 for device in node.devices]
    if not seats:
        raise PlacementError("placement: the cluster must have a node, got none. Start one and retry.")
    gpu_seats = [seat for seat in seats if seat.device.kind == "cuda"]
    answers = [_place_class(members, question) for members in _group_by_class(gpu_seats or seats)]
    refusals = [answer for answer in answers if isinstance(answer, _Refusal)]
    placed = [answer for answer in answers if not isinstance(answer, _Refusal)]
    if not placed:
        raise PlacementError(_explain_failure(refusals, question))
    placements = sorted(
        (placement for placement, _ in placed), key=lambda item: (-item.available_bytes, item.device_class)
    )
    placements, total_slots, cap_words = _cap_slots(placements, cluster.max_slots)
    notes = [
        *(f"{hostname}: no CPUs for Ray, so no trials there" for hostname in idle),
        *_note_cluster(seats, shape),
        *(note for _, class_notes in placed for note in class_notes),
        *cap_words,
        *_note_precisions(placements),
    ]
    return Plan(tuple(placements), tuple(notes), tuple(refusal.words for refusal in refusals), total_slots)


def _group_by_class(seats: Sequence[Seat]) -> list[list[Seat]]:
    classes: dict[str, list[Seat]] = {}
    for seat in seats:
        classes.setdefault(seat.device.class_key, []).append(seat)
    return list(classes.values())


def _place_class(seats: list[Seat], question: Question) -> tuple[Placement, list[str]] | _Refusal:
    """Place the largest trial on the devices of one class; also notes on devices of it that are too full."""
    first = seats[0]
    problem = find_problem(first.device, question.quantization)
    if problem:
        return _Refusal(f"{first.device.name} on {first.label}: {problem}", first)
    try:
        precision = choose_precision(first.device, requested=question.precision_requested)
    except PlacementError as error:
        return _Refusal(str(error), first)
    workload = describe_workload(seats, question, precision)
    needed_bytes = question.count_needed_bytes(workload)
    fitting = [seat for seat in seats if seat.free_bytes >= needed_bytes]
    if not fitting:
        fullest = max(seats, key=lambda seat: seat.free_bytes)
        estimate = estimate_memory(question.shape, workload)
        return _Refusal(_say_too_small(fullest, estimate, question), fullest, estimate)
    notes = [
        f"{seat.label}: only {format_gib(seat.free_bytes)} of its {format_gib(seat.device.total_memory_bytes)} are "
        f"free and one trial needs {format_gib(needed_bytes)}; it is left out"
        for seat in seats
        if seat.free_bytes < needed_bytes
    ]
    room_bytes = min(seat.free_bytes for seat in fitting)
    override = question.cluster.slots_per_device
    max_micro_batch = find_max_micro_batch(workload, question, room_bytes, num_slots=override or 1)
    if max_micro_batch == 0:
        return _Refusal(
            f"{first.device.name} on {first.label}: cluster.slots_per_device must be at most "
            f"{int(room_bytes // needed_bytes)} here, got {override}: {format_gib(room_bytes)} are free and one trial "
            f"needs {format_gib(needed_bytes)}. Lower or drop it.",
            first,
        )
    workload = replace(workload, micro_batch=max_micro_batch)
    return _build_placement(fitting, question, precision, workload, room_bytes), notes


def _build_placement(
    seats: list[Seat], question: Question, precision: Precision, workload: Workload, room_bytes: int
) -> Placement:
    device, demand = seats[0].device, question.demand
    estimate = estimate_memory(question.shape, workload)
    count = _count_slots(seats, question, estimate, room_bytes)
    num_threads = _count_threads(seats, question, count.slots)
    share_bytes = room_bytes // count.slots
    micro_batch = largest_divisor(demand.effective_batch, at_most=workload.micro_batch)
    is_gpu = device.kind == "cuda"
    words = [
        f"one trial takes {estimate.describe(safety_factor=question.safety_factor)} of {format_gib(room_bytes)}",
        count.words,
        precision.reason,
    ]
    if workload.micro_batch < demand.per_device_train_batch_size:
        words.append(
            f"{workload.micro_batch} of per_device_train_batch_size {demand.per_device_train_batch_size} rows fit"
        )
    return Placement(
        device_class=device.class_key,
        device_kind=device.kind,
        device_name=device.name,
        devices=tuple(seat.label for seat in seats),
        engine="sft",
        slots_per_device=count.slots,
        num_gpus=_floor(1 / count.slots) if is_gpu else 0.0,
        num_cpus=_share_cpus(seats, count.slots, num_threads),
        num_threads=num_threads,
        memory_cap_fraction=_floor((share_bytes - estimate.context_bytes) / device.total_memory_bytes)
        if is_gpu
        else None,
        precision=precision,
        max_micro_batch=workload.micro_batch,
        micro_batch=micro_batch,
        gradient_accumulation_steps=demand.effective_batch // micro_batch,
        eval_batch=find_eval_batch(workload, question, share_bytes),
        estimate=estimate,
        needed_bytes=math.ceil(estimate.total_bytes * question.safety_factor),
        available_bytes=room_bytes,
        reason="; ".join(words),
    )


def _count_slots(seats: list[Seat], question: Question, estimate: MemoryEstimate, room_bytes: int) -> _SlotCount:
    """The smallest of the limits that memory, CPUs, host RAM and good sense set."""
    cluster = question.cluster
    if cluster.slots_per_device is not None:
        return _SlotCount(cluster.slots_per_device, f"{_say_slots(cluster.slots_per_device)}, as the config asks")
    if cluster.packing == "off":
        return _SlotCount(1, "1 slot: packing is off")
    by_memory = int(room_bytes // (estimate.total_bytes * question.safety_factor))
    cpus = min(seat.node.num_cpus // (len(seat.node.devices) * (cluster.cpus_per_slot or 1)) for seat in seats)
    limits = [(by_memory, "memory is the limit"), (max(1, cpus), "CPUs are the limit")]
    if seats[0].device.kind == "cuda":
        ram = min(seat.node.available_ram_bytes // len(seat.node.devices) for seat in seats)
        limits.append((max(1, ram // CPU_PROCESS_BYTES), "the node's RAM is the limit"))
        limits.append((MAX_SLOTS_PER_GPU, "more processes on one GPU would only take turns"))
    slots, limit = min(limits, key=lambda item: item[0])
    return _SlotCount(slots, f"{_say_slots(slots)}: {limit}")


def _count_threads(seats: list[Seat], question: Question, slots: int) -> int:
    """CPU threads of one slot: as the config asks; else one beside a GPU, or a fair share of a CPU node."""
    if question.cluster.cpus_per_slot is not None:
        return question.cluster.cpus_per_slot
    if seats[0].device.kind == "cuda":
        return 1
    return max(1, min(seat.node.num_cpus for seat in seats) // slots)


def _share_cpus(seats: list[Seat], slots: int, num_threads: int) -> float:
    """Ray's CPU request per slot: one per thread, or what the node can give to all its slots."""
    shares = [(seat.node.num_cpus - RESERVED_CPUS_PER_NODE) / (slots * len(seat.node.devices)) for seat in seats]
    return _floor(min(num_threads, *shares))


def _cap_slots(placements: list[Placement], max_slots: int | None) -> tuple[list[Placement], int, list[str]]:
    """Lower slots per device, the same bound everywhere, while max_slots can still be reached."""
    available = sum(placement.num_slots for placement in placements)
    if max_slots is None or available <= max_slots:
        return placements, available, []
    bound = next(
        bound
        for bound in range(1, available + 1)
        if sum(min(item.slots_per_device, bound) * item.num_devices for item in placements) >= max_slots
    )
    words = f"cluster.max_slots: {max_slots} of the {available} trials that fit run at once"
    return [_lower_slots(item, bound) for item in placements], max_slots, [words]


def _lower_slots(placement: Placement, bound: int) -> Placement:
    if placement.slots_per_device <= bound:
        return placement
    words = f"{placement.reason}; {_say_slots(bound)} by cluster.max_slots"
    if placement.device_kind == "cpu":
        return replace(placement, slots_per_device=bound, reason=words)
    return replace(placement, slots_per_device=bound, num_gpus=_floor(1 / bound), reason=words)


def _note_cluster(seats: Sequence[Seat], shape: ModelShape) -> list[str]:
    notes = []
    cpu_hosts = [seat.node.hostname for seat in seats if seat.device.kind == "cpu"]
    if cpu_hosts and len(cpu_hosts) < len(seats):
        notes.append(f"{', '.join(cpu_hosts)}: no GPU, so no trials there")
    if shape.layout_assumed:
        notes.append(f"model type {shape.model_type} is not known here; its layers are counted as Llama's")
    return notes


def _note_precisions(placements: Sequence[Placement]) -> list[str]:
    if len({placement.precision.name for placement in placements}) < 2:
        return []
    names = ", ".join(f"{placement.precision.name} on {placement.device_name}" for placement in placements)
    return [f"losses are compared across precisions ({names}); the best are scored again on one class"]


def _say_slots(slots: int) -> str:
    return f"{slots} slot{'s' if slots != 1 else ''}"


def _say_too_small(seat: Seat, estimate: MemoryEstimate, question: Question) -> str:
    return (
        f"{seat.device.name} on {seat.label}: {format_gib(seat.free_bytes)} free, and one trial needs "
        f"{estimate.describe(safety_factor=question.safety_factor)} at micro-batch 1"
    )


def _explain_failure(refusals: Sequence[_Refusal], question: Question) -> str:
    """One message for a cluster without room: the closest miss if memory is short, else every reason."""
    short = [refusal for refusal in refusals if refusal.estimate is not None]
    if not short:
        return "\n".join(refusal.words for refusal in refusals)
    largest = max(short, key=lambda refusal: refusal.seat.free_bytes)
    assert largest.estimate is not None
    device = largest.seat.device
    place = "GPU" if device.kind == "cuda" else "node"
    return (
        f"placement: one trial needs {largest.estimate.describe(safety_factor=question.safety_factor)}; the largest "
        f"free {place} has {format_gib(device.free_memory_bytes)} ({device.short_name} on "
        f"{largest.seat.node.hostname}). {_say_remedy(question)}"
    )


def _say_remedy(question: Question) -> str:
    remedies = ["lower data.max_length or lora.r"]
    if not question.demand.gradient_checkpointing:
        remedies.append("use training.gradient_checkpointing: true")
    if question.quantization.method != "nf4":
        remedies.append("use model.quantization.method: nf4")
    remedies.append("choose a smaller base")
    text = ", ".join(remedies[:-1]) + f", or {remedies[-1]}."
    return text[0].upper() + text[1:]


def _floor(number: float) -> float:
    """Rounded down to Ray's resolution, so that shares never add up to more than the whole."""
    return math.floor(number * 10**RESOURCE_DECIMALS) / 10**RESOURCE_DECIMALS
