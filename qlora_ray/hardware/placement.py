"""How many trials fit on which device, and in which precision: a pure function of profiles, model and config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from qlora_ray.config.schema import Cluster, Quantization
from qlora_ray.errors import PlacementError
from qlora_ray.formats import format_gib, plural
from qlora_ray.hardware.device import NodeProfile
from qlora_ray.hardware.fitting import NodeDevice, Question, Refusal, find_problem
from qlora_ray.hardware.memory_counts import FRAGMENTATION
from qlora_ray.hardware.packing import place_pack
from qlora_ray.hardware.plan import Placement, Plan, TrialDemand
from qlora_ray.hardware.precision import choose_precision
from qlora_ray.hardware.processes import place_processes
from qlora_ray.hardware.shape import ModelShape
from qlora_ray.hardware.sharing import round_down


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
        shape: The base's layers and widths, from its config.
        demand: What the largest trial of the space needs.
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
    if cluster.packing == "packed" and demand.single_reason:
        raise PlacementError(
            f"cluster.packing must be auto, single or off for these trials, got packed: {demand.single_reason}. "
            "Change that, or set cluster.packing: auto."
        )
    # A head node that Ray was given no CPUs of runs nothing.
    idle = [node.hostname for node in nodes if node.num_cpus < 1]
    devices = [NodeDevice(profile, node) for node in nodes if node.num_cpus >= 1 for profile in node.devices]
    if not devices:
        raise PlacementError("placement: the cluster must have a node, got none. Start one and retry.")
    gpus = [device for device in devices if device.profile.kind == "cuda"]
    answers = [_place_class(members, question) for members in _group_by_class(gpus or devices)]
    refusals = [answer for answer in answers if isinstance(answer, Refusal)]
    placed = [answer for answer in answers if not isinstance(answer, Refusal)]
    if not placed:
        raise PlacementError(_explain_failure(refusals, question))
    placements = sorted(
        (placement for placement, _ in placed), key=lambda item: (-item.available_bytes, item.device_class)
    )
    placements, total_slots, cap_words = _cap_slots(placements, cluster)
    if demand.num_trials is not None:
        total_slots = min(total_slots, demand.num_trials)
    notes = [
        *(f"{hostname}: no CPUs for Ray, so no trials there" for hostname in idle),
        *_note_cluster(devices, shape),
        *(note for _, class_notes in placed for note in class_notes),
        *cap_words,
        *_note_precisions(placements),
    ]
    return Plan(tuple(placements), tuple(notes), tuple(refusal.words for refusal in refusals), total_slots)


def _group_by_class(devices: Sequence[NodeDevice]) -> list[list[NodeDevice]]:
    classes: dict[str, list[NodeDevice]] = {}
    for device in devices:
        classes.setdefault(device.profile.class_key, []).append(device)
    return list(classes.values())


def _place_class(devices: list[NodeDevice], question: Question) -> tuple[Placement, list[str]] | Refusal:
    """Place the largest trial on the devices of one class, as the config's packing says."""
    first, packing = devices[0], question.cluster.packing
    problem = find_problem(first.profile, question.quantization)
    if problem:
        return Refusal(f"{first.profile.name} on {first.label}: {problem}", first)
    try:
        precision = choose_precision(first.profile, requested=question.precision_requested)
    except PlacementError as error:
        return Refusal(str(error), first)
    if packing in ("single", "off"):
        return place_processes(devices, question, precision)
    if question.demand.single_reason:
        return place_processes(devices, question, precision, why=question.demand.single_reason)
    answer = place_pack(devices, question, precision)
    if packing == "auto" and isinstance(answer, Refusal) and answer.estimate is not None:
        return place_processes(devices, question, precision, why="memory is too short for a pack")
    return answer


def _cap_slots(placements: list[Placement], cluster: Cluster) -> tuple[list[Placement], int, list[str]]:
    """Lower slots per device, the same bound everywhere, while max_slots can still be reached."""
    max_slots = cluster.max_slots
    available = sum(placement.num_slots for placement in placements)
    if max_slots is None or available <= max_slots:
        return placements, available, []
    bound = next(
        bound
        for bound in range(1, available + 1)
        if sum(min(item.slots_per_device, bound) * item.num_devices for item in placements) >= max_slots
    )
    words = f"cluster.max_slots: {max_slots} of the {available} trials that fit run at once"
    lowered = [_lower_slots(item, bound, safety_factor=cluster.memory_safety_factor) for item in placements]
    return lowered, max_slots, [words]


def _lower_slots(placement: Placement, bound: int, *, safety_factor: float) -> Placement:
    surplus = placement.slots_per_device - bound
    if surplus <= 0:
        return placement
    words = f"{placement.reason}; {plural(bound, 'slot')} by cluster.max_slots"
    lowered = replace(placement, slots_per_device=bound, reason=words)
    if placement.engine == "packed":
        before = placement.estimate
        adapter_bytes = before.adapter_bytes // placement.slots_per_device * bound
        freed_bytes = before.adapter_bytes - adapter_bytes
        fragmentation_bytes = before.fragmentation_bytes - int(FRAGMENTATION * freed_bytes)
        estimate = replace(before, adapter_bytes=adapter_bytes, fragmentation_bytes=fragmentation_bytes)
        return replace(lowered, estimate=estimate, needed_bytes=math.ceil(estimate.total_bytes * safety_factor))
    return lowered if placement.device_kind == "cpu" else replace(lowered, num_gpus=round_down(1 / bound))


def _note_cluster(devices: Sequence[NodeDevice], shape: ModelShape) -> list[str]:
    notes = []
    cpu_hosts = [device.node.hostname for device in devices if device.profile.kind == "cpu"]
    if cpu_hosts and len(cpu_hosts) < len(devices):
        notes.append(f"{', '.join(cpu_hosts)}: no GPU, so no trials there")
    if shape.layout_assumed:
        notes.append(f"model type {shape.model_type} is not known here; its memory is estimated as a Llama's")
    return notes


def _note_precisions(placements: Sequence[Placement]) -> list[str]:
    if len({placement.precision.name for placement in placements}) < 2:
        return []
    names = ", ".join(f"{placement.precision.name} on {placement.device_name}" for placement in placements)
    return [f"losses are compared across precisions ({names}); the best are scored again on one class"]


def _explain_failure(refusals: Sequence[Refusal], question: Question) -> str:
    """One message for a cluster without room: the closest miss if memory is short, else every reason."""
    short = [refusal for refusal in refusals if refusal.estimate is not None]
    if not short:
        return "\n".join(refusal.words for refusal in refusals)
    largest = max(short, key=lambda refusal: refusal.device.free_bytes)
    assert largest.estimate is not None
    profile = largest.device.profile
    place = "GPU" if profile.kind == "cuda" else "node"
    return (
        f"placement: one trial needs {largest.estimate.describe(safety_factor=question.safety_factor)}; the largest "
        f"free {place} has {format_gib(profile.free_memory_bytes)} ({profile.short_name} on "
        f"{largest.device.node.hostname}). {_say_remedy(question)}"
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
