"""Whether, and how, the largest trial of a sweep fits on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qlora_ray.config.schema import Cluster, Quantization
from qlora_ray.hardware.memory import (
    CONTEXT_BYTES,
    CONTEXT_BYTES_BEFORE_AMPERE,
    CPU_PROCESS_BYTES,
    Loss,
    Workload,
    estimate_evaluation_bytes,
    estimate_memory,
)
from qlora_ray.hardware.plan import TrialDemand
from qlora_ray.hardware.precision import BF16_COMPUTE_CAPABILITY, Precision
from qlora_ray.hardware.probe import DeviceProfile, NodeProfile
from qlora_ray.hardware.shape import ModelShape

# bitsandbytes installation guide: NF4, FP4 and 8-bit optimizers from Pascal on, LLM.int8() from Turing on.
NF4_COMPUTE_CAPABILITY = (6, 0)
INT8_COMPUTE_CAPABILITY = (7, 5)
# torch 2.10 on a T4: "Flash attention only supports gpu architectures in the range [sm80, sm121]"; half precision only.
FLASH_COMPUTE_CAPABILITY = (8, 0)
# From this version on SFTTrainer never holds all logits (read in 1.16.0); older ones are counted with the stock loss.
TRL_TILED_LOSS_VERSION = (1, 16)


@dataclass(frozen=True)
class Seat:
    """A device in its node."""

    device: DeviceProfile
    node: NodeProfile

    @property
    def label(self) -> str:
        return f"{self.node.hostname}:{self.device.index}"

    @property
    def free_bytes(self) -> int:
        return self.device.free_memory_bytes


@dataclass(frozen=True)
class Question:
    """The arguments of plan_placements that are the same for every device."""

    shape: ModelShape
    demand: TrialDemand
    cluster: Cluster
    quantization: Quantization
    precision_requested: str

    @property
    def safety_factor(self) -> float:
        return self.cluster.memory_safety_factor

    def count_needed_bytes(self, workload: Workload) -> float:
        """Bytes to keep free for one process: the estimate with its safety factor."""
        return estimate_memory(self.shape, workload).total_bytes * self.safety_factor


def find_problem(device: DeviceProfile, quantization: Quantization) -> str | None:
    """Why the libraries cannot train on a device, or None."""
    if device.problem or device.kind == "cpu" or device.compute_capability is None:
        return device.problem
    if quantization.method == "none":
        return None
    least = INT8_COMPUTE_CAPABILITY if quantization.method == "int8" else NF4_COMPUTE_CAPABILITY
    if device.compute_capability >= least:
        return None
    return (
        f"bitsandbytes needs compute capability {least[0]}.{least[1]} for {quantization.method}, got "
        f"{device.capability_text}. Set model.quantization.method: {'nf4' if least == (7, 5) else 'none'}."
    )


def describe_workload(seats: Sequence[Seat], question: Question, precision: Precision) -> Workload:
    """The largest trial on this class, at micro-batch 1."""
    demand, device = question.demand, seats[0].device
    if device.kind == "cpu":
        context_bytes = CPU_PROCESS_BYTES
    elif (device.compute_capability or BF16_COMPUTE_CAPABILITY) < BF16_COMPUTE_CAPABILITY:
        context_bytes = CONTEXT_BYTES_BEFORE_AMPERE
    else:
        context_bytes = CONTEXT_BYTES
    return Workload(
        method=question.quantization.method,
        double_quantization=question.quantization.double_quantization,
        targets=demand.targets,
        r=demand.max_r,
        modules_to_save=demand.modules_to_save,
        optim=demand.optim,
        precision=precision.name,
        seq_length=demand.max_seq_length,
        gradient_checkpointing=demand.gradient_checkpointing,
        loss=_choose_loss(seats) if demand.loss == "auto" else demand.loss,
        device_kind=device.kind,
        fp32_parameters=demand.fp32_parameters,
        lora_dropout=demand.lora_dropout,
        attention=_choose_attention(device, question, precision),
        context_bytes=context_bytes,
    )


def _choose_attention(
    device: DeviceProfile, question: Question, precision: Precision
) -> Literal["fused", "math", "eager"]:
    """The kernel that attention gets: SDPA has no fused one for grouped keys where flash attention is not to be had.

    Workaround for huggingface/transformers issue 48633 (transformers 5.23): use_gqa_in_sdpa looks at no architecture.
    """
    if question.demand.attn_implementation != "sdpa":
        return "eager" if question.demand.attn_implementation == "eager" else "fused"
    if device.kind == "cpu" or not question.shape.has_grouped_keys:
        return "fused"
    has_flash = device.compute_capability is not None and device.compute_capability >= FLASH_COMPUTE_CAPABILITY
    return "fused" if has_flash and precision.name != "fp32" else "math"


def _choose_loss(seats: Sequence[Seat]) -> Loss:
    """`tiled` where every node's TRL has it, else `stock`."""
    for seat in seats:
        version = (seat.node.packages.get("trl") or "0.0").split(".")
        numbers = tuple(int(word) if word.isdigit() else 0 for word in version[:2])
        if numbers < TRL_TILED_LOSS_VERSION:
            return "stock"
    return "tiled"


def find_max_micro_batch(workload: Workload, question: Question, room_bytes: int, *, num_slots: int) -> int:
    """Most rows per slot, up to the trial's batch size, with that many slots; 0 if not even one row fits."""
    for micro_batch in range(question.demand.per_device_train_batch_size, 0, -1):
        if num_slots * question.count_needed_bytes(replace(workload, micro_batch=micro_batch)) <= room_bytes:
            return micro_batch
    return 0


def find_eval_batch(workload: Workload, question: Question, share_bytes: int) -> int:
    """Most validation rows at once in one slot's share; at least 1."""
    for eval_batch in range(question.demand.eval_batch, 1, -1):
        needed = estimate_evaluation_bytes(question.shape, replace(workload, micro_batch=eval_batch))
        if needed * question.safety_factor <= share_bytes:
            return eval_batch
    return 1
