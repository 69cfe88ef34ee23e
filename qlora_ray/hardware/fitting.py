"""Whether, and how, the largest trial of a sweep fits on one device: what both kinds of placement ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_ray.config.schema import Cluster, Quantization
from qlora_ray.formats import format_gib
from qlora_ray.hardware.demand import TrialDemand
from qlora_ray.hardware.device import DeviceProfile, NodeProfile
from qlora_ray.hardware.memory import MemoryEstimate, estimate_memory
from qlora_ray.hardware.memory_counts import CPU_PROCESS_BYTES, context_bytes_of
from qlora_ray.hardware.precision import PrecisionChoice
from qlora_ray.hardware.shape import ModelShape
from qlora_ray.hardware.stored import BACKENDS, StoredQuantization
from qlora_ray.hardware.workload import EngineName, Loss, Workload

# bitsandbytes installation guide: NF4, FP4 and 8-bit optimizers from Pascal on, LLM.int8() from Turing on.
NF4_COMPUTE_CAPABILITY = (6, 0)
INT8_COMPUTE_CAPABILITY = (7, 5)
# torch 2.10 on a T4: "Flash attention only supports gpu architectures in the range [sm80, sm121]"; half precision only.
FLASH_COMPUTE_CAPABILITY = (8, 0)
# From this version on SFTTrainer never holds all logits (read in 1.16.0); older ones are counted with the stock loss.
TRL_TILED_LOSS_VERSION = (1, 16)


@dataclass(frozen=True)
class NodeDevice:
    """A device in its node."""

    profile: DeviceProfile
    node: NodeProfile

    @property
    def label(self) -> str:
        return f"{self.node.hostname}:{self.profile.index}"

    @property
    def free_bytes(self) -> int:
        return self.profile.free_memory_bytes


@dataclass(frozen=True)
class Question:
    """The arguments of plan_placements that are the same for every device."""

    shape: ModelShape
    demand: TrialDemand
    cluster: Cluster
    quantization: Quantization
    precision_requested: str

    @property
    def held(self) -> Quantization | StoredQuantization:
        """How the base is held: as it is stored, where it is stored quantized, else as the config says."""
        return self.shape.stored or self.quantization

    @property
    def safety_factor(self) -> float:
        return self.cluster.memory_safety_factor

    def estimate(self, workload: Workload) -> MemoryEstimate:
        """Bytes of one process."""
        return estimate_memory(self.shape, workload)

    def count_needed_bytes(self, workload: Workload) -> float:
        """Bytes to keep free for one process: the estimate with its safety factor."""
        return self.estimate(workload).total_bytes * self.safety_factor


@dataclass(frozen=True)
class Refusal:
    """Why the devices of a class get no placement. `estimate` is there when memory is the reason."""

    words: str
    devices: Sequence[NodeDevice]
    estimate: MemoryEstimate | None = None

    @property
    def device(self) -> NodeDevice:
        """The one with the most free memory."""
        return max(self.devices, key=lambda device: device.free_bytes)


def find_problem(profile: DeviceProfile, quantization: Quantization | StoredQuantization) -> str | None:
    """Why the libraries cannot train on a device, or None; of gptqmodel's no limit is known here."""
    if profile.problem or profile.kind == "cpu" or profile.compute_capability is None:
        return profile.problem
    if BACKENDS.get(quantization.method) != "bitsandbytes":
        return None
    least = INT8_COMPUTE_CAPABILITY if quantization.method == "int8" else NF4_COMPUTE_CAPABILITY
    if profile.compute_capability >= least:
        return None
    other = "nf4" if least == INT8_COMPUTE_CAPABILITY else "none"
    is_stored = isinstance(quantization, StoredQuantization)
    advice = "Name a base that is not quantized" if is_stored else f"Set model.quantization.method: {other}"
    return (
        f"bitsandbytes needs compute capability {least[0]}.{least[1]} for {quantization.method}, got "
        f"{profile.capability_text}. {advice}."
    )


def describe_workload(
    devices: Sequence[NodeDevice], question: Question, precision: PrecisionChoice, *, engine: EngineName
) -> Workload:
    """Returns the workload of the largest trial by itself, one row at a time, for the memory model.

    Args:
        devices: The devices of one class.
        question: The base, the largest trial, and what the config says of the cluster.
        precision: What the class computes in.
        engine: `packed` or `single`.
    """
    demand, profile, stored = question.demand, devices[0].profile, question.shape.stored
    is_cpu = profile.kind == "cpu"
    context_bytes = CPU_PROCESS_BYTES if is_cpu else context_bytes_of(profile.compute_capability)
    loss: Loss = demand.loss if demand.loss != "auto" else "labels" if engine == "packed" else _choose_loss(devices)
    return Workload(
        engine=engine,
        method=question.held.method,
        double_quantization=question.held.double_quantization,
        weight_bits=(stored and stored.bits) or 4,
        group_size=stored.block_size if stored else None,
        targets=demand.targets,
        r=demand.max_r,
        modules_to_save=demand.modules_to_save,
        num_head_parameters=demand.num_head_parameters,
        optim=demand.optim,
        precision=precision.name,
        seq_length=demand.max_seq_length,
        # The planner asks of each: `auto` has become one of them before.
        gradient_checkpointing=demand.gradient_checkpointing is True,
        loss=loss,
        device_kind=profile.kind,
        fp32_parameters=demand.fp32_parameters,
        lora_dropout=demand.lora_dropout,
        attention=_choose_attention(profile, question, precision),
        context_bytes=context_bytes,
    )


def _choose_attention(
    profile: DeviceProfile, question: Question, precision: PrecisionChoice
) -> Literal["fused", "math", "eager"]:
    """The kernel that attention gets: SDPA has no fused one for grouped keys where flash attention is not to be had.

    Workaround for huggingface/transformers issue 48633 (transformers 5.23): use_gqa_in_sdpa looks at no architecture.
    """
    if question.demand.attn_implementation != "sdpa":
        return "eager" if question.demand.attn_implementation == "eager" else "fused"
    if profile.kind == "cpu" or not question.shape.has_grouped_keys:
        return "fused"
    return "fused" if _has_flash(profile, precision) else "math"


def _has_flash(profile: DeviceProfile, precision: PrecisionChoice) -> bool:
    capability = profile.compute_capability
    return capability is not None and capability >= FLASH_COMPUTE_CAPABILITY and precision.name != "fp32"


def _choose_loss(devices: Sequence[NodeDevice]) -> Loss:
    """`tiled` where every node's TRL has it, else `stock`."""
    for device in devices:
        version = (device.node.packages.get("trl") or "0.0").split(".")
        numbers = tuple(int(word) if word.isdigit() else 0 for word in version[:2])
        if numbers < TRL_TILED_LOSS_VERSION:
            return "stock"
    return "tiled"


def find_attention_problem(profile: DeviceProfile, question: Question, precision: PrecisionChoice) -> str | None:
    """Why a device cannot compute attention as `model.attn_implementation` says; None if it can."""
    if question.demand.attn_implementation != "flash_attention_2":
        return None
    if _has_flash(profile, precision) and not profile.is_simulated:
        return None
    return (
        "model.attn_implementation flash_attention_2 must have a GPU of compute capability 8.0 or higher that "
        f"computes in bf16 or fp16, got {profile.shown_name} in {precision.name}. Take sdpa."
    )


def find_fitting(
    devices: list[NodeDevice], question: Question, workload: Workload
) -> tuple[list[NodeDevice], list[str]] | Refusal:
    """Returns the devices with enough free memory and a note on each without; a refusal if none has.

    Args:
        devices: The devices of one class.
        question: Has the safety factor of the estimate.
        workload: What one executor is to hold.
    """
    needed_bytes = question.count_needed_bytes(workload)
    fitting = [device for device in devices if device.free_bytes >= needed_bytes]
    if not fitting:
        fullest = max(devices, key=lambda device: device.free_bytes)
        estimate = question.estimate(workload)
        words = (
            f"{fullest.profile.shown_name} on {fullest.label}: {format_gib(fullest.free_bytes)} free, and one trial "
            f"needs {estimate.describe(safety_factor=question.safety_factor)} at micro-batch 1"
        )
        return Refusal(words, devices, estimate)
    notes = [
        f"{device.label}: only {format_gib(device.free_bytes)} of its "
        f"{format_gib(device.profile.total_memory_bytes)} are "
        f"free and one trial needs {format_gib(needed_bytes)}; it is left out"
        for device in devices
        if device.free_bytes < needed_bytes
    ]
    return fitting, notes


def refuse_slots(
    devices: Sequence[NodeDevice], question: Question, *, at_most: int, room_bytes: int, words: str
) -> Refusal:
    """Returns the refusal where `cluster.slots_per_device` asks for more than fit.

    Args:
        devices: Those of the class.
        question: What the config asks for.
        at_most: Slots that fit.
        room_bytes: Free memory of the class's fullest device.
        words: What each slot needs, in words.
    """
    device = devices[0]
    return Refusal(
        f"{device.profile.shown_name} on {device.label}: cluster.slots_per_device must be at most {at_most} here, got "
        f"{question.cluster.slots_per_device}: {format_gib(room_bytes)} are free and {words}. Lower or drop it.",
        devices,
    )
