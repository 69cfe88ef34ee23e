"""Placing trials as a pack: one executor per device with the packed engine, one base, and a slot for each trial."""

from __future__ import annotations

import math
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
from qlora_ray.hardware.memory import SMALLEST_SHOWN_BYTES, MemoryEstimate
from qlora_ray.hardware.memory_counts import FRAGMENTATION
from qlora_ray.hardware.plan import Placement
from qlora_ray.hardware.precision import PrecisionChoice
from qlora_ray.hardware.sharing import ExecutorSet, find_most, make_placement
from qlora_ray.hardware.workload import Workload

# Tokens of one step of a whole pack from which more trials gain little. A micro-batch of T tokens takes as long as
# max(T_host, T_dq + T) tokens. Dequantizing NF4 moves 2.5 bytes per weight (half a byte read, two written) where a
# token takes 2 FLOP, so that T_dq = 1.25 * peak FLOP/s / bandwidth whatever the model's width: by the data sheets 254
# tokens on a T4 (65 TFLOP/s, 320 GB/s), 260 on an A10 (125, 600), 251 on an A100 40 GB (312, 1555), 258 on an H200
# (989, 4800). Beyond 8 T_dq at most an eighth can be gained. T_host, the launching of a small model's kernels on a GPU,
# is taken to be as long as 16k tokens. Both are choices until measured.
SATURATION_TOKENS = {"cpu": 2048, "cuda": 16384}
# A micro-batch may hold twice that, so that trials of a step need not be cut where they nearly fit. A choice.
PASS_TOKENS_PER_SATURATION = 2
# Even where one trial fills the device, so many share it: stopping the weak early needs others to compare them with.
# More than the most would raise what is lost with an executor. Choices.
MIN_PACKED_SLOTS = 4
MAX_PACKED_SLOTS = 16
# The base is held dequantized if that takes at most this part of the room that nothing else needs. A choice: the memory
# model is a prior, and the rest is for what it does not know.
HOLD_SHARE = 1 / 3
HELD_METHODS = ("nf4", "fp4")  # LLM.int8() computes another product than its dequantized weights do.


# On a CPU each operation is split over the threads of its process and waits for the slowest. Two threads make a step of
# the embedded base (192 wide) 1.37 times as fast as one, and two processes 2.0 times (docs/decisions.md). So a narrow
# base gets more packs, not more threads, and its node more slots with its cores. Where the line lies is a choice.
NARROW_WIDTH = 1024
SATURATION_TOKENS_PER_CORE = 1024
MAX_PACKS = 8


@dataclass(frozen=True)
class _Pack:
    """What one executor does: its workload with all slots and the longest micro-batches, and why so many slots."""

    workload: Workload
    words: str
    per_device: int = 1


def place_pack(
    devices: list[NodeDevice], question: Question, precision: PrecisionChoice
) -> tuple[Placement, list[str]] | Refusal:
    """Places a pack of the largest trial on the devices of one class.

    Args:
        devices: The devices of one class.
        question: The base, the largest trial, and what the config says of the cluster.
        precision: What the class computes in.

    Returns:
        The placement and notes on devices that are too full; or why there is none.
    """
    demand = question.demand
    workload = describe_workload(devices, question, precision, engine="packed")
    workload = replace(workload, micro_batch_tokens=demand.max_seq_length)
    found = find_fitting(devices, question, workload)
    if isinstance(found, Refusal):
        return found
    fitting, notes = found
    room_bytes = min(device.free_bytes for device in fitting)
    override = question.cluster.slots_per_device
    by_memory = _find_max_slots(workload, question, room_bytes, at_most=override or MAX_PACKED_SLOTS)
    if override is not None and by_memory < override:
        return refuse_slots(
            devices,
            question,
            at_most=by_memory,
            room_bytes=room_bytes,
            words=f"{plural(override, 'trial')} on one base need "
            f"{format_gib(question.count_needed_bytes(replace(workload, num_trials=override)))}",
        )
    slots, limit = _count_slots(fitting, question, by_memory)
    packs = _count_packs(fitting, question, workload, slots=slots, room_bytes=room_bytes)
    workload = replace(workload, num_trials=slots // packs)
    if packs * workload.num_trials < slots:
        limit = "fill the device"
    words = _say_slots(packs * workload.num_trials, limit, question, packs=packs)
    share_bytes = room_bytes // packs
    workload = replace(workload, micro_batch_tokens=_find_max_tokens(workload, question, share_bytes))
    workload = replace(workload, hold_dequantized=_has_room_to_hold(workload, question, share_bytes))
    return _build_placement(fitting, question, precision, _Pack(workload, words, packs), room_bytes), notes


def _count_packs(
    devices: list[NodeDevice], question: Question, workload: Workload, *, slots: int, room_bytes: int
) -> int:
    """Packs on one device: several only of a narrow base on a CPU, with at least two trials in each."""
    if not _is_narrow(devices, question):
        return 1
    cluster = question.cluster
    exact = [number for number in (cluster.slots_per_device, cluster.max_slots) if number is not None]
    bound = min([slots, *exact])
    for packs in range(min(MAX_PACKS, _count_threads(devices, question, bound), bound // 2), 1, -1):
        needed_bytes = question.count_needed_bytes(replace(workload, num_trials=slots // packs))
        if packs * needed_bytes <= room_bytes and all(number % packs == 0 for number in exact):
            return packs
    return 1


def _is_narrow(devices: list[NodeDevice], question: Question) -> bool:
    return devices[0].profile.kind == "cpu" and question.shape.hidden_size < NARROW_WIDTH


def _find_max_slots(workload: Workload, question: Question, room_bytes: int, *, at_most: int) -> int:
    """Most slots beside micro-batches of one row; at least 1, for one is known to fit."""

    def fits(slots: int) -> bool:
        return question.count_needed_bytes(replace(workload, num_trials=slots)) <= room_bytes

    return max(1, find_most(at_most, fits))


def _count_slots(devices: list[NodeDevice], question: Question, by_memory: int) -> tuple[int, str]:
    """The slots of one device, and the limit that set the number."""
    demand, cluster = question.demand, question.cluster
    if cluster.slots_per_device is not None:
        return cluster.slots_per_device, "as the config asks"
    saturation = SATURATION_TOKENS[devices[0].profile.kind]
    if _is_narrow(devices, question):
        saturation = max(saturation, SATURATION_TOKENS_PER_CORE * min(device.node.num_cpus for device in devices))
    filling = max(MIN_PACKED_SLOTS, math.ceil(saturation / demand.step_tokens))
    limits = [
        (filling, "fill the device"),
        (MAX_PACKED_SLOTS, "are the most that share one"),
        (demand.num_trials or filling, "are all of the sweep's"),
        (by_memory, "are all that memory allows"),
    ]
    return min(limits, key=lambda item: item[0])


def _say_slots(slots: int, limit: str, question: Question, *, packs: int) -> str:
    """The plan's words for the number of slots."""
    if slots == 1:
        limit = limit.replace("fill ", "fills ").replace("are ", "is ")
    words = f"packed: {plural(slots, 'trial')} on one base {limit}"
    if packs > 1:
        words = f"packed: {plural(slots, 'trial')} {limit}, in {packs} packs with a base each, for layers this narrow"
        words += " gain little from more threads"
    return f"{words} (about {slots * question.demand.step_tokens} tokens a step)"


def _find_max_tokens(workload: Workload, question: Question, room_bytes: int) -> int:
    """Padded tokens of a micro-batch that fit beside the slots, at most what a step has and a device can use."""
    demand = question.demand
    step_tokens = workload.num_trials * demand.effective_batch * demand.max_seq_length
    useful = PASS_TOKENS_PER_SATURATION * SATURATION_TOKENS[workload.device_kind]

    def fits(tokens: int) -> bool:
        return question.count_needed_bytes(replace(workload, micro_batch_tokens=tokens)) <= room_bytes

    return max(demand.max_seq_length, find_most(min(useful, step_tokens), fits))


def _has_room_to_hold(workload: Workload, question: Question, room_bytes: int) -> bool:
    """Whether the dense copy of the base fits into its share of what is left."""
    if workload.method not in HELD_METHODS:
        return False
    needed_bytes = question.count_needed_bytes(workload)
    copy_bytes = question.count_needed_bytes(replace(workload, hold_dequantized=True)) - needed_bytes
    return copy_bytes <= HOLD_SHARE * (room_bytes - needed_bytes)


def _build_placement(
    devices: list[NodeDevice], question: Question, precision: PrecisionChoice, pack: _Pack, room_bytes: int
) -> Placement:
    workload = pack.workload
    estimate = question.estimate(workload)
    slots = pack.per_device * workload.num_trials
    whole = "in all" if pack.per_device == 1 else "each pack takes"
    words = [
        pack.words,
        f"{whole} {estimate.describe(safety_factor=question.safety_factor)} of {format_gib(room_bytes)}",
        f"at most {workload.num_tokens} tokens in a micro-batch",
        *_say_hold(workload, estimate),
        precision.reason,
    ]
    executors = ExecutorSet(
        workload=workload,
        estimate=estimate,
        slots=slots,
        processes=pack.per_device,
        num_threads=max(1, _count_threads(devices, question, slots) // pack.per_device),
        max_micro_batch=max(1, workload.num_tokens // question.demand.max_seq_length),
        reason="; ".join(words),
    )
    placement = make_placement(devices, executors, question=question, precision=precision, room_bytes=room_bytes)
    return replace(
        placement,
        slot_bytes=int((1 + FRAGMENTATION) * estimate.adapter_bytes / workload.num_trials),
        max_tokens_per_micro_batch=workload.num_tokens,
        hold_dequantized=workload.hold_dequantized,
        packs_per_device=pack.per_device,
    )


def _say_hold(workload: Workload, estimate: MemoryEstimate) -> list[str]:
    if workload.method not in HELD_METHODS:
        return []
    if not workload.hold_dequantized:
        return ["the base is dequantized in every micro-batch, for want of room to hold it so"]
    size_bytes = estimate.dequantized_bytes
    size = f" ({format_gib(size_bytes)})" if size_bytes >= SMALLEST_SHOWN_BYTES else ""
    return [f"the base is also held dequantized{size}"]


def _count_threads(devices: list[NodeDevice], question: Question, slots: int) -> int:
    """CPU threads of the executor: its share of the node, or what the config asks for all of its slots."""
    share = min(device.node.num_cpus // len(device.node.devices) for device in devices)
    if question.cluster.cpus_per_slot is not None:
        share = min(share, slots * question.cluster.cpus_per_slot)
    return max(1, share)
