"""What would make a trial fit that does not: changes of the config, tried on the memory model one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlora_ray.formats import format_gib
from qlora_ray.hardware.fitting import NodeDevice, Question, Refusal, describe_workload
from qlora_ray.hardware.memory_counts import FRAGMENTATION
from qlora_ray.hardware.plan import RefusedClass
from qlora_ray.hardware.precision import choose_precision

# Shorter samples and smaller adapters than these are another task. Choices.
SHORTEST_LENGTH = 128
LOWEST_RANK = 4
SMALLEST_TARGETS = "attention-qv"
# One machine has rarely more.
MOST_TOGETHER = 8


@dataclass(frozen=True)
class _Change:
    """A change of the config: how it is written, and the question with it."""

    setting: str
    apply: Callable[[Question], Question]


def refuse_class(refusal: Refusal, question: Question) -> RefusedClass:
    """Returns a refused class with what would make one trial fit there.

    Args:
        refusal: Why it was refused.
        question: What was asked.
    """
    profile = refusal.device.profile
    is_short = refusal.estimate is not None
    return RefusedClass(
        device_class=profile.class_key,
        device_kind=profile.kind,
        device_name=profile.shown_name,
        devices=tuple(device.label for device in refusal.devices),
        words=refusal.words,
        needed_bytes=int(_count_least_bytes(refusal.devices, question)) if is_short else None,
        available_bytes=refusal.device.free_bytes,
        remedies=tuple(_find_remedies(refusal, question)) if is_short else (),
        num_together=_count_together(refusal, question) if is_short and profile.kind == "cuda" else None,
    )


def explain_failure(refusals: Sequence[Refusal], question: Question) -> str:
    """One message for a cluster without room: the closest miss if memory is short, else every reason."""
    short = [refusal for refusal in refusals if refusal.estimate is not None]
    if not short:
        return "\n".join(refusal.words for refusal in refusals)
    largest = max(short, key=lambda refusal: refusal.device.free_bytes)
    assert largest.estimate is not None
    profile = largest.device.profile
    place = "GPU" if profile.kind == "cuda" else "node"
    refused = refuse_class(largest, question)
    together = "" if refused.num_together is None else f" {refused.num_together} such GPUs would hold it together."
    remedy = f"Use {', or '.join(refused.remedies)}." if refused.remedies else "Choose a smaller base."
    return (
        f"placement: one trial needs {largest.estimate.describe(safety_factor=question.safety_factor)}; the largest "
        f"free {place} has {format_gib(profile.free_memory_bytes)} ({profile.short_name} on "
        f"{largest.device.node.hostname}). {remedy}{together}"
    )


def _find_remedies(refusal: Refusal, question: Question) -> Iterator[str]:
    """The changes that are enough each by itself; where none is, the first few together that are."""
    changes = list(_list_changes(question))
    enough = [words for steps in changes if (words := _find_enough(refusal, question, steps))]
    if enough:
        yield from enough
        return
    settings: list[str] = []
    for steps in changes:
        words = _find_enough(refusal, question, steps)
        if words:
            yield " and ".join([*settings, words])
            return
        # Its largest step, and the next change too.
        settings.append(steps[-1].setting)
        question = steps[-1].apply(question)


def _find_enough(refusal: Refusal, question: Question, steps: Sequence[_Change]) -> str | None:
    """The first step with which a trial fits, and what it needs then; None if none is enough."""
    for change in steps:
        needed_bytes = _count_least_bytes(refusal.devices, change.apply(question))
        if needed_bytes <= refusal.device.free_bytes:
            return f"{change.setting} ({format_gib(needed_bytes)})"
    return None


def _list_changes(question: Question) -> Iterator[list[_Change]]:
    """Changes from the one that costs least of what is learnt to the one that costs most; each in growing steps."""
    demand, quantization = question.demand, question.quantization
    if demand.gradient_checkpointing is False:
        yield [_of_demand("training.gradient_checkpointing: auto", gradient_checkpointing="auto")]
    if demand.optim == "adamw_torch":
        yield [_of_demand("training.optim: paged_adamw_8bit", optim="paged_adamw_8bit")]
    if question.shape.stored is None and (quantization.method != "nf4" or not quantization.double_quantization):
        nf4 = quantization.model_copy(update={"method": "nf4", "double_quantization": True})
        yield [_Change("model.quantization.method: nf4", lambda asked: replace(asked, quantization=nf4))]
    if lengths := list(_halve(demand.max_seq_length, least=SHORTEST_LENGTH)):
        yield [_of_demand(f"data.max_length: {length}", max_seq_length=length) for length in lengths]
    if ranks := list(_halve(demand.max_r, least=LOWEST_RANK)):
        yield [_of_demand(f"lora.r: {r}", max_r=r) for r in ranks]
    if demand.targets != SMALLEST_TARGETS and not demand.modules_to_save:
        yield [_of_demand(f"lora.target_modules: {SMALLEST_TARGETS}", targets=SMALLEST_TARGETS)]


def _of_demand(setting: str, **values: Any) -> _Change:
    return _Change(setting, lambda asked: replace(asked, demand=replace(asked.demand, **values)))


def _halve(number: int, *, least: int) -> Iterator[int]:
    """Powers of two below the number, largest first."""
    power = (1 << (number - 1).bit_length()) >> 1
    while power >= least:
        yield power
        power //= 2


def _count_least_bytes(devices: Sequence[NodeDevice], question: Question) -> float:
    """What one trial needs, at one row at a time, in the engine that the config allows and that takes less."""
    precision = choose_precision(devices[0].profile, requested=question.precision_requested)
    recomputes = question.demand.gradient_checkpointing is not False
    question = replace(question, demand=replace(question.demand, gradient_checkpointing=recomputes))
    packed, single = (describe_workload(devices, question, precision, engine=engine) for engine in ("packed", "single"))
    packed_bytes = question.count_needed_bytes(replace(packed, micro_batch_tokens=question.demand.max_seq_length))
    single_bytes = question.count_needed_bytes(single)
    if question.cluster.packing in ("single", "off") or question.demand.single_reason:
        return single_bytes
    return packed_bytes if question.cluster.packing == "packed" else min(packed_bytes, single_bytes)


def _count_together(refusal: Refusal, question: Question) -> int | None:
    """GPUs that would hold one trial with the base and the adapter sharded over them, and all else on each.

    As FSDP's full sharding does (PyTorch, FullyShardedDataParallel): parameters, gradients and optimizer state are
    divided, activations and the one layer that is gathered are not.
    """
    precision = choose_precision(refusal.device.profile, requested=question.precision_requested)
    question = replace(question, demand=replace(question.demand, gradient_checkpointing=True))
    estimate = question.estimate(describe_workload(refusal.devices, question, precision, engine="single"))
    sharded_bytes = estimate.base_bytes + estimate.adapter_bytes
    whole_bytes = estimate.allocated_bytes - sharded_bytes
    for number in range(2, MOST_TOGETHER + 1):
        allocated_bytes = sharded_bytes / number + whole_bytes
        needed_bytes = question.safety_factor * ((1 + FRAGMENTATION) * allocated_bytes + estimate.context_bytes)
        if needed_bytes <= refusal.device.free_bytes:
            return number
    return None
