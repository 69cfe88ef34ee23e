"""How many bytes one training process takes: a prior, which the measured peak corrects later.

M = base + adapters (weights, gradients, moments) + activations + logits + dequantized layer + fragmentation + context.
tests/unit/test_hardware_memory.py holds it against rows that others measured on GPUs (tests/data/memory_rows.csv).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qlora_ray.formats import GIB, format_gib
from qlora_ray.hardware.memory_counts import (
    ADAPTER_GRADIENT_BYTES,
    ADAPTER_WEIGHT_BYTES,
    CONTEXT_BYTES,
    CPU_PROCESS_BYTES,
    EVALUATION_LOGIT_BYTES,
    FRAGMENTATION,
    LOGIT_BYTES,
    MLP_GRADIENT_TENSORS,
    PACKED_HEAD_TENSORS,
    count_adapter_bytes,
    count_adapter_parameters,
    count_base_bytes,
    count_dequantized_bytes,
    count_layer_bytes_per_token,
    count_logits_bytes,
    count_packed_backward_bytes,
)
from qlora_ray.hardware.shape import ModelShape
from qlora_ray.hardware.workload import Workload

SMALLEST_SHOWN_BYTES = GIB // 20


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process, part by part. `allocated` is tensors, `reserved` what the allocator holds for them.

    `adapter_bytes` are those of all its trials; `dequantized_bytes` those of one layer, or of all where they are held.
    """

    base_bytes: int
    adapter_bytes: int
    activations_bytes: int
    logits_bytes: int
    dequantized_bytes: int
    context_bytes: int
    fragmentation_bytes: int

    @property
    def allocated_bytes(self) -> int:
        """As torch.cuda.max_memory_allocated counts."""
        return (
            self.base_bytes + self.adapter_bytes + self.activations_bytes + self.logits_bytes + self.dequantized_bytes
        )

    @property
    def reserved_bytes(self) -> int:
        """As torch.cuda.max_memory_reserved counts."""
        return self.allocated_bytes + self.fragmentation_bytes

    @property
    def total_bytes(self) -> int:
        """What the device has less while the process lives."""
        return self.reserved_bytes + self.context_bytes

    def describe(self, *, safety_factor: float = 1.0) -> str:
        """`23.4 GiB (base 16.1, activations 4.0, safety 2.1)`: largest part first, and none below 0.05."""
        parts = {name.removesuffix("_bytes").replace("_", " "): value for name, value in asdict(self).items()}
        parts["safety"] = int((safety_factor - 1) * self.total_bytes)
        shown = sorted(parts.items(), key=lambda part: -part[1])
        text = ", ".join(f"{name} {value / GIB:.1f}" for name, value in shown if value >= SMALLEST_SHOWN_BYTES)
        total = format_gib(safety_factor * self.total_bytes)
        return f"{total} ({text})" if text else total

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MemoryEstimate:
        return cls(**values)


def estimate_memory(shape: ModelShape, workload: Workload) -> MemoryEstimate:
    """Estimate the peak of a training step.

    With checkpointing the peak is the head's or one layer's recompute, whichever is larger, never their sum: the
    smaller one is left out of the parts.

    Raises:
        ConfigError: The optimizer is not known.
        ModelError: A target is no module of the model.
    """
    tokens = workload.num_tokens
    layer_bytes = tokens * count_layer_bytes_per_token(shape, workload)
    logits_bytes = count_logits_bytes(shape, workload, LOGIT_BYTES)
    residual_bytes = tokens * shape.hidden_size * workload.residual_bytes
    activations_bytes = residual_bytes  # the last hidden state, which the head reads
    is_packed = workload.engine == "packed"
    if is_packed:
        activations_bytes += PACKED_HEAD_TENSORS * residual_bytes
    backward_bytes = count_packed_backward_bytes(shape, workload) if is_packed else 0
    if workload.gradient_checkpointing:
        activations_bytes += shape.num_layers * residual_bytes
        gradients_bytes = tokens * MLP_GRADIENT_TENSORS * shape.intermediate_size * workload.residual_bytes
        layer_bytes += backward_bytes if is_packed else gradients_bytes
        if layer_bytes > logits_bytes:
            activations_bytes, logits_bytes = activations_bytes + layer_bytes, 0
    else:
        activations_bytes += shape.num_layers * layer_bytes
        # The head's logits are gone when the layers' backward begins.
        if backward_bytes > logits_bytes:
            activations_bytes, logits_bytes = activations_bytes + backward_bytes, 0
    if is_packed:
        # A trial that joins, between two steps, has the weights and gradients of all copied to make room for its own.
        copied_bytes = ADAPTER_WEIGHT_BYTES + ADAPTER_GRADIENT_BYTES
        joining_bytes = workload.num_trials * copied_bytes * count_adapter_parameters(shape, workload)
        activations_bytes = max(activations_bytes, joining_bytes - logits_bytes)
    return _complete(shape, workload, activations_bytes=activations_bytes, logits_bytes=logits_bytes)


def estimate_evaluation_bytes(shape: ModelShape, workload: Workload) -> int:
    """Total bytes of a process between steps that scores `micro_batch` rows without gradients."""
    activations_bytes = workload.num_tokens * count_layer_bytes_per_token(shape, workload)
    logits_bytes = count_logits_bytes(shape, workload, EVALUATION_LOGIT_BYTES)
    if activations_bytes > logits_bytes:
        logits_bytes = 0
    else:
        activations_bytes = 0
    return _complete(shape, workload, activations_bytes=activations_bytes, logits_bytes=logits_bytes).total_bytes


def _complete(shape: ModelShape, workload: Workload, *, activations_bytes: int, logits_bytes: int) -> MemoryEstimate:
    """The parts that do not depend on the tokens, and fragmentation over all."""
    base_bytes = count_base_bytes(shape, workload)
    adapter_bytes = count_adapter_bytes(shape, workload)
    dequantized_bytes = count_dequantized_bytes(shape, workload)
    allocated_bytes = base_bytes + adapter_bytes + activations_bytes + logits_bytes + dequantized_bytes
    context_bytes = workload.context_bytes
    if context_bytes is None:
        context_bytes = CONTEXT_BYTES if workload.device_kind == "cuda" else CPU_PROCESS_BYTES
    return MemoryEstimate(
        base_bytes=base_bytes,
        adapter_bytes=adapter_bytes,
        activations_bytes=activations_bytes,
        logits_bytes=logits_bytes,
        dequantized_bytes=dequantized_bytes,
        context_bytes=context_bytes,
        fragmentation_bytes=int(FRAGMENTATION * allocated_bytes),
    )
