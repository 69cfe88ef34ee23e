"""How many trials fit on which device, and in which precision: a pure function of profiles, model and config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qlora_ray.config.schema import Cluster, Quantization
from qlora_ray.errors import PlacementError
from qlora_ray.formats import plural
from qlora_ray.hardware.choosing import (
    cap_gpus,
    cap_slots,
    choose_classes,
    is_preferred,
    note_unmet,
    sort_placements,
)
from qlora_ray.hardware.cpu_bf16 import name_step
from qlora_ray.hardware.demand import TrialDemand
from qlora_ray.hardware.device import NodeProfile
from qlora_ray.hardware.fitting import NodeDevice, Question, Refusal, find_attention_problem, find_problem
from qlora_ray.hardware.packing import MIN_PACKED_SLOTS, place_pack
from qlora_ray.hardware.plan import Placement, Plan
from qlora_ray.hardware.precision import PrecisionChoice, choose_precision
from qlora_ray.hardware.processes import place_processes
from qlora_ray.hardware.remedies import explain_failure, refuse_class
from qlora_ray.hardware.shape import ModelShape


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
    unmet_words = note_unmet(devices, cluster)
    chosen, class_words = choose_classes(gpus or devices, cluster)
    answers = [_place_class(members, question) for members in _group_by_class(chosen)]
    refusals = [answer for answer in answers if isinstance(answer, Refusal)]
    placed = [answer for answer in answers if not isinstance(answer, Refusal)]
    if not placed:
        raise PlacementError(explain_failure(refusals, question))
    placements, gpu_words = cap_gpus(sort_placements([placement for placement, _ in placed]), cluster)
    placements, total_slots, cap_words = cap_slots(placements, cluster)
    if demand.num_trials is not None:
        total_slots = min(total_slots, demand.num_trials)
    notes = [
        *(f"{hostname}: no CPUs for Ray, so no trials there" for hostname in idle),
        *_note_cluster(devices, shape),
        *class_words,
        *unmet_words,
        *(note for _, class_notes in placed for note in class_notes),
        *gpu_words,
        *cap_words,
        *_note_precisions(placements),
        *_note_simulated(placements),
    ]
    refused = [refuse_class(refusal, question) for refusal in refusals]
    return Plan(
        placements=tuple(placements),
        notes=tuple(notes),
        skipped=tuple(item.describe() for item in refused),
        total_slots=total_slots,
        refused=tuple(refused),
    )


def _group_by_class(devices: Sequence[NodeDevice]) -> list[list[NodeDevice]]:
    classes: dict[str, list[NodeDevice]] = {}
    for device in devices:
        classes.setdefault(device.profile.class_key, []).append(device)
    return list(classes.values())


def _place_class(devices: list[NodeDevice], question: Question) -> tuple[Placement, list[str]] | Refusal:
    """Place the largest trial on the devices of one class."""
    first = devices[0]
    problem = find_problem(first.profile, question.held)
    if problem:
        return Refusal(f"{first.profile.shown_name} on {first.label}: {problem}", devices)
    requested = question.precision_requested
    try:
        precision = choose_precision(first.profile, requested=requested)
    except PlacementError as error:
        return Refusal(str(error), devices)
    attention_problem = find_attention_problem(first.profile, question, precision)
    if attention_problem:
        return Refusal(attention_problem, devices)
    answer = _place_checkpointing(devices, question, precision)
    if first.profile.bf16_speedups and not isinstance(answer, Refusal):
        # What was measured there is by threads, which follow from the placement.
        step = name_step(question.shape, num_threads=answer[0].num_threads)
        measured = choose_precision(first.profile, requested=requested, step=step)
        if measured != precision:
            answer = _place_checkpointing(devices, question, measured)
    if isinstance(answer, Refusal):
        return answer
    placement, notes = answer
    return replace(placement, is_preferred=is_preferred(first, question.cluster)), notes


def _place_checkpointing(
    devices: list[NodeDevice], question: Question, precision: PrecisionChoice
) -> tuple[Placement, list[str]] | Refusal:
    """Places with or without recomputed activations, as the trials say; `auto`: with, only where that lets more run.

    Recomputing costs a second forward pass per step, so it must be worth one: a trial that would not fit, the packed
    engine in place of the single one, or as many trials as a pack should have at least.
    """
    if question.demand.gradient_checkpointing != "auto":
        return _place_engine(devices, question, precision)
    keeping, recomputing = (
        _place_engine(
            devices, replace(question, demand=replace(question.demand, gradient_checkpointing=recomputes)), precision
        )
        for recomputes in (False, True)
    )
    if isinstance(recomputing, Refusal) or _worth(keeping) >= _worth(recomputing):
        return keeping
    placement, notes = recomputing
    if isinstance(keeping, Refusal):
        words = "one trial would not fit"
    else:
        before = keeping[0]
        words = f"it would be {plural(before.slots_per_device, 'trial')} in the {before.engine} engine"
    reason = f"{placement.reason}; activations are recomputed (gradient checkpointing), without which {words}"
    return replace(placement, reason=reason), notes


def _worth(answer: tuple[Placement, list[str]] | Refusal) -> tuple[int, ...]:
    if isinstance(answer, Refusal):
        return (0,)
    placement = answer[0]
    is_packed = placement.engine == "packed"
    return (1, is_packed, min(placement.slots_per_device, MIN_PACKED_SLOTS) if is_packed else 1, placement.num_devices)


def _place_engine(
    devices: list[NodeDevice], question: Question, precision: PrecisionChoice
) -> tuple[Placement, list[str]] | Refusal:
    """Places with the engine that the config's packing says."""
    packing = question.cluster.packing
    if packing in ("single", "off"):
        return place_processes(devices, question, precision)
    if question.demand.single_reason:
        return place_processes(devices, question, precision, why=question.demand.single_reason)
    answer = place_pack(devices, question, precision)
    if packing == "auto" and isinstance(answer, Refusal) and answer.estimate is not None:
        return place_processes(devices, question, precision, why="memory is too short for a pack")
    return answer


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


def _note_simulated(placements: Sequence[Placement]) -> list[str]:
    names = ", ".join(item.device_name for item in placements if item.simulates)
    words = "planned as if it were there, computed in fp32 on the CPU; no speed or memory of it is measured"
    return [f"{names}: {words}, and nothing is exported"] if names else []
