"""What each executor gets of its device: memory, CPUs, rows at once; and the placement that says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qlora_ray.hardware.catalogue import recognize
from qlora_ray.hardware.fitting import NodeDevice, Question
from qlora_ray.hardware.memory import MemoryEstimate, estimate_evaluation_bytes
from qlora_ray.hardware.plan import Placement, largest_divisor
from qlora_ray.hardware.precision import PrecisionChoice
from qlora_ray.hardware.workload import Workload

RESOURCE_DECIMALS = 4  # Ray counts resources in units of 1e-4 (ray 2.60, FixedPoint)
# Trial actors and Ray tasks need a little of a CPU beside the executors, or they would wait for ever.
RESERVED_CPUS_PER_NODE = 0.1


@dataclass(frozen=True)
class ExecutorSet:
    """The executors of one device, all alike.

    Attributes:
        workload: What each holds, at the most rows or tokens at once.
        estimate: The memory that each takes.
        slots: Trials at once on the device.
        processes: Executors on the device.
        num_threads: Of each.
        max_micro_batch: Most rows of the longest length at once in each.
        reason: Why so many, in words.
    """

    workload: Workload
    estimate: MemoryEstimate
    slots: int
    processes: int
    num_threads: int
    max_micro_batch: int
    reason: str


def make_placement(
    devices: Sequence[NodeDevice],
    executors: ExecutorSet,
    *,
    question: Question,
    precision: PrecisionChoice,
    room_bytes: int,
) -> Placement:
    """Returns the placement that gives each executor an even share of its device.

    Args:
        devices: The devices of one class that have room.
        executors: How many executors a device has, and what each is given.
        question: The base, the largest trial, and what the config says of the cluster.
        precision: What the class computes in.
        room_bytes: Free memory of the class's fullest device.
    """
    profile, demand = devices[0].profile, question.demand
    gpu = recognize(profile) if profile.kind == "cuda" else None
    workload, estimate = executors.workload, executors.estimate
    share_bytes = room_bytes // executors.processes
    micro_batch = largest_divisor(demand.effective_batch, at_most=executors.max_micro_batch)
    return Placement(
        device_class=profile.class_key,
        device_kind=profile.kind,
        device_name=profile.shown_name,
        devices=tuple(device.label for device in devices),
        engine=workload.engine,
        slots_per_device=executors.slots,
        num_gpus=round_down(1 / executors.processes) if profile.kind == "cuda" else 0.0,
        num_cpus=_share_cpus(devices, processes=executors.processes, num_threads=executors.num_threads),
        num_threads=executors.num_threads,
        memory_cap_fraction=_cap_memory(devices[0], estimate, share_bytes),
        precision=precision,
        max_micro_batch=executors.max_micro_batch,
        micro_batch=micro_batch,
        gradient_accumulation_steps=demand.effective_batch // micro_batch,
        eval_batch=_find_eval_batch(workload, question, share_bytes),
        estimate=estimate,
        needed_bytes=math.ceil(estimate.total_bytes * question.safety_factor),
        available_bytes=room_bytes,
        reason=executors.reason,
        gradient_checkpointing=workload.gradient_checkpointing,
        workload=workload,
        gpu_class=gpu.name if gpu else None,
        simulates=gpu.name if gpu and profile.is_simulated else None,
    )


def _find_eval_batch(workload: Workload, question: Question, share_bytes: int) -> int:
    """Returns the most validation rows that fit one process at once; at least 1.

    Args:
        workload: What the process trains.
        question: Has `per_device_eval_batch_size`, the upper bound, and the safety factor.
        share_bytes: The process's share of the device's memory.
    """

    def fits(eval_batch: int) -> bool:
        rows = replace(workload, micro_batch=eval_batch, micro_batch_tokens=None)
        return estimate_evaluation_bytes(question.shape, rows) * question.safety_factor <= share_bytes

    return max(1, find_most(question.demand.eval_batch, fits))


def find_most(at_most: int, fits: Callable[[int], bool]) -> int:
    """Returns the largest number up to `at_most` that fits, 0 if not even 1 does; of more never more fit."""
    least, above = 0, at_most + 1
    while above - least > 1:
        middle = (least + above) // 2
        least, above = (middle, above) if fits(middle) else (least, middle)
    return least


def _share_cpus(devices: Sequence[NodeDevice], *, processes: int, num_threads: int) -> float:
    """Returns Ray's CPU request per process: one per thread, or less where the node cannot give that to all.

    Args:
        devices: The devices of one class; the node with the least CPUs per process decides.
        processes: Executors per device.
        num_threads: Threads of one executor.
    """
    shares = [
        (device.node.num_cpus - RESERVED_CPUS_PER_NODE) / (processes * len(device.node.devices)) for device in devices
    ]
    return round_down(min(num_threads, *shares))


def _cap_memory(device: NodeDevice, estimate: MemoryEstimate, share_bytes: int) -> float | None:
    """Returns the fraction of a GPU's memory that a process's tensors may take; None on a CPU.

    Args:
        device: A device of the class.
        estimate: Of one executor; its CUDA context is not the allocator's to take.
        share_bytes: The executor's share of the device's memory.
    """
    if device.profile.kind == "cpu":
        return None
    return round_down((share_bytes - estimate.context_bytes) / device.profile.total_memory_bytes)


def round_down(number: float) -> float:
    """To Ray's resolution, so that shares never add up to more than the whole."""
    return math.floor(number * 10**RESOURCE_DECIMALS) / 10**RESOURCE_DECIMALS
