"""How many bytes one training process takes: a prior, which the measured peak corrects later.

M = base + adapter (weights, gradients, moments) + activations + logits + dequantized layer + fragmentation + context.
tests/unit/test_hardware_memory.py holds it against rows that others measured on GPUs (tests/data/memory_rows.csv).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qlora_ray.errors import ConfigError
from qlora_ray.hardware.shape import ModelShape

GIB = 1024**3
SMALLEST_SHOWN_BYTES = GIB // 20
Loss = Literal["stock", "chunked", "tiled"]

# Bytes per quantized weight. NF4 and FP4: 4 bits and one fp32 scale per 64 weights; double quantization: one byte per
# 64 and one fp32 per 64 * 256 (QLoRA, arXiv 2305.14314, section 3). int8: one byte; its fp32 scales are per row.
BLOCKWISE_BYTES = 0.5 + 4 / 64
DOUBLE_QUANTIZED_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
INT8_BYTES = 1.0

# Bytes per adapter parameter: fp32 weight and gradient, and AdamW's two moments in fp32, or in one byte each with an
# fp32 scale per 256 (bitsandbytes 0.50, optim/optimizer.py).
ADAPTER_WEIGHT_BYTES = 4
ADAPTER_GRADIENT_BYTES = 4
MOMENT_BYTES = {
    "adamw_torch": 8.0,
    "adamw_8bit": 2 * (1 + 4 / 256),
    "paged_adamw_8bit": 2 * (1 + 4 / 256),
}

# What backward needs from one decoder layer, in tensors per token, counted with torch's saved_tensors_hooks on a
# Linear4bit Llama with PEFT (torch 2.13, transformers 5.23, peft 0.21): the inputs of the two factors of a gated MLP
# and the activation's result; q, k, v and the output of attention; per norm one fp32 input.
MLP_TENSORS = {"llama": 3, "phi3": 3, "mlp": 2, "gpt_neox": 2, "gpt2": 2}
ATTENTION_TENSORS = 4
NORM_INPUT_BYTES = 4
# Going back through the MLP, one layer's recompute also holds the gradients of two of its tensors.
MLP_GRADIENT_TENSORS = 2
# Each adapted module keeps its own input, cast for lora_A, and its dropout mask: four bytes an element on a CPU (torch
# 2.13; own count), a bool on CUDA (native_dropout).
DROPOUT_MASK_BYTES = {"cuda": 1, "cpu": 4}
# Bytes per attention score (query x key) that are kept. SDPA's fused kernels keep none. Its math kernel keeps the fp32
# probabilities; it is what a model with grouped keys gets where flash attention is not to be had, on a T4 for example
# (huggingface/transformers issue 48633), and it explains row 6. eager: 4.5 fp32 copies (the model that
# Anassbzdd/fitcheck holds against its T4 runs).
SCORE_BYTES = {"fused": 0, "math": 4, "eager": 18}

# The stock loss keeps, per token and vocabulary entry: logits, their fp32 copy, log-softmax and the gradient. Rows 1, 2
# and 4 have a slope of 2.61 MB per token = 16 * vocabulary + 4 * layers * hidden.
LOGIT_BYTES = 16
LOSS_CHUNKS = 8  # torchtune's CEWithChunkedOutputLoss, num_output_chunks
# TRL 1.16, kernels/chunked_logprob.py and trainer/utils.py: one tile of logits; in place by Triton on CUDA, while torch
# on a CPU makes four fp32 copies of it.
TILE_TOKENS = 4096
TILE_VOCABULARY = 32768
TILE_CPU_COPY_BYTES = 16
# Evaluation makes logits, an fp32 copy and log-softmax, and no gradient.
EVALUATION_LOGIT_BYTES = 12

# reserved / allocated was 1.02-1.18 on the rows that have both (median 1.07) and 1.09-1.15 on fitcheck's T4 rows; other
# public runs reach 1.49. The config's safety factor comes on top, and the measured peak corrects it.
FRAGMENTATION = 0.10

# A CUDA process holds 133-147 MiB on a T4 (fitcheck, 33 runs, torch 2.10, CUDA 12.8), and up to 0.5 GB on Ampere and
# later.
CONTEXT_BYTES_BEFORE_AMPERE = 147 * 1024**2
CONTEXT_BYTES = 500 * 10**6
# Resident memory of a process that has imported the libraries and trained: 0.58 GiB after five TRL steps of a tiny
# Llama (torch 2.13 CPU build, transformers 5.23, trl 1.16; own measurement), doubled for Ray's worker and generation.
CPU_PROCESS_BYTES = int(1.2 * GIB)


@dataclass(frozen=True)
class Workload:
    """What one process trains.

    Args:
        method: As in config model.quantization: nf4, fp4, int8 or none.
        targets: A preset of config lora.target_modules, or module names.
        precision: bf16, fp16 or fp32, the compute dtype.
        micro_batch: Rows through the device at once.
        loss: `stock` makes all logits at once, `chunked` an eighth of them (torchtune), `tiled` one tile (TRL 1.16).
        fp32_parameters: Which unquantized parameters are kept in fp32: `none` here, `norms`, or `all` as PEFT's
            prepare_model_for_kbit_training does. With any of them the residual stream is fp32 too, for bitsandbytes
            returns its input's dtype. `all` is counted without autocast, as in the rows it is tested on.
        attention: Which kernel attention gets, see SCORE_BYTES.
        context_bytes: What a process holds besides tensors; None for the usual of the device kind.
    """

    method: Literal["nf4", "fp4", "int8", "none"] = "nf4"
    double_quantization: bool = True
    targets: str | Sequence[str] = "all-linear"
    r: int = 16
    modules_to_save: tuple[str, ...] = ()
    optim: str = "paged_adamw_8bit"
    precision: str = "bf16"
    micro_batch: int = 1
    seq_length: int = 512
    gradient_checkpointing: bool = False
    loss: Loss = "stock"
    device_kind: Literal["cuda", "cpu"] = "cuda"
    fp32_parameters: Literal["all", "norms", "none"] = "none"
    lora_dropout: float = 0.0
    attention: Literal["fused", "math", "eager"] = "fused"
    context_bytes: int | None = None

    @property
    def num_tokens(self) -> int:
        return self.micro_batch * self.seq_length

    @property
    def compute_bytes(self) -> int:
        """Bytes per element of the compute dtype."""
        return 4 if self.precision == "fp32" else 2

    @property
    def residual_bytes(self) -> int:
        """Bytes per element of the residual stream and of what the layers keep."""
        return self.compute_bytes if self.fp32_parameters == "none" else 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process, part by part. `allocated` is tensors, `reserved` what the allocator holds for them."""

    base_bytes: int
    adapter_bytes: int
    activations_bytes: int
    logits_bytes: int
    dequantized_layer_bytes: int
    context_bytes: int
    fragmentation_bytes: int

    @property
    def allocated_bytes(self) -> int:
        """As torch.cuda.max_memory_allocated counts."""
        return (
            self.base_bytes
            + self.adapter_bytes
            + self.activations_bytes
            + self.logits_bytes
            + self.dequantized_layer_bytes
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


def format_gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB"


def estimate_memory(shape: ModelShape, workload: Workload) -> MemoryEstimate:
    """Estimate the peak of a training step.

    With checkpointing the peak is the head's or one layer's recompute, whichever is larger, never their sum: the
    smaller one is left out of the parts.

    Raises:
        ConfigError: The optimizer is not known.
        ModelError: A target is no module of the model.
    """
    tokens = workload.num_tokens
    layer_bytes = tokens * _count_layer_bytes_per_token(shape, workload)
    logits_bytes = _count_logits_bytes(shape, workload, LOGIT_BYTES)
    residual_bytes = tokens * shape.hidden_size * workload.residual_bytes
    activations_bytes = residual_bytes  # the last hidden state, which the head reads
    if workload.gradient_checkpointing:
        activations_bytes += shape.num_layers * residual_bytes
        layer_bytes += tokens * MLP_GRADIENT_TENSORS * shape.intermediate_size * workload.residual_bytes
        if layer_bytes > logits_bytes:
            activations_bytes, logits_bytes = activations_bytes + layer_bytes, 0
    else:
        activations_bytes += shape.num_layers * layer_bytes
    return _complete(shape, workload, activations_bytes=activations_bytes, logits_bytes=logits_bytes)


def estimate_evaluation_bytes(shape: ModelShape, workload: Workload) -> int:
    """Total bytes of a process between steps that scores `micro_batch` rows without gradients."""
    activations_bytes = workload.num_tokens * _count_layer_bytes_per_token(shape, workload)
    logits_bytes = _count_logits_bytes(shape, workload, EVALUATION_LOGIT_BYTES)
    if activations_bytes > logits_bytes:
        logits_bytes = 0
    else:
        activations_bytes = 0
    return _complete(shape, workload, activations_bytes=activations_bytes, logits_bytes=logits_bytes).total_bytes


def _complete(shape: ModelShape, workload: Workload, *, activations_bytes: int, logits_bytes: int) -> MemoryEstimate:
    """The parts that do not depend on the tokens, and fragmentation over all."""
    base_bytes = _count_base_bytes(shape, workload)
    adapter_bytes = _count_adapter_bytes(shape, workload)
    largest_linear = max(d_in * d_out for d_in, d_out in shape.linears().values())
    dequantized_bytes = 0 if workload.method == "none" else largest_linear * workload.compute_bytes
    allocated_bytes = base_bytes + adapter_bytes + activations_bytes + logits_bytes + dequantized_bytes
    context_bytes = workload.context_bytes
    if context_bytes is None:
        context_bytes = CONTEXT_BYTES if workload.device_kind == "cuda" else CPU_PROCESS_BYTES
    return MemoryEstimate(
        base_bytes=base_bytes,
        adapter_bytes=adapter_bytes,
        activations_bytes=activations_bytes,
        logits_bytes=logits_bytes,
        dequantized_layer_bytes=dequantized_bytes,
        context_bytes=context_bytes,
        fragmentation_bytes=int(FRAGMENTATION * allocated_bytes),
    )


def _count_base_bytes(shape: ModelShape, workload: Workload) -> int:
    linear_bytes = shape.num_linear_parameters * bytes_per_linear_weight(workload)
    if workload.method == "int8":
        rows = shape.num_layers * sum(d_out for _, d_out in shape.linears().values())
        linear_bytes += 4 * rows
    embedding_bytes = 4 if workload.fp32_parameters == "all" else workload.compute_bytes
    norm_bytes = workload.compute_bytes if workload.fp32_parameters == "none" else 4
    return int(linear_bytes + embedding_bytes * shape.num_embedding_parameters + norm_bytes * shape.num_norm_parameters)


def bytes_per_linear_weight(workload: Workload) -> float:
    """Bytes of one weight of a decoder layer's linears, scales included."""
    if workload.method == "none":
        return float(workload.compute_bytes)
    if workload.method == "int8":
        return INT8_BYTES
    return DOUBLE_QUANTIZED_BYTES if workload.double_quantization else BLOCKWISE_BYTES


def _count_adapter_bytes(shape: ModelShape, workload: Workload) -> int:
    if workload.optim not in MOMENT_BYTES:
        raise ConfigError(
            f"training.optim must be one of {', '.join(MOMENT_BYTES)}, got {workload.optim!r}. Choose one of them."
        )
    trained = shape.num_adapter_parameters(workload.targets, workload.r)
    trained += len(workload.modules_to_save) * shape.vocab_size * shape.hidden_size  # copies of embeddings or head
    return int(trained * (ADAPTER_WEIGHT_BYTES + ADAPTER_GRADIENT_BYTES + MOMENT_BYTES[workload.optim]))


def _count_layer_bytes_per_token(shape: ModelShape, workload: Workload) -> int:
    """Bytes that backward needs from one decoder layer, per token."""
    query_width = shape.num_heads * shape.head_dim
    tensors = MLP_TENSORS[shape.layout] * shape.intermediate_size + ATTENTION_TENSORS * query_width
    norm_bytes = shape.num_norms_per_layer * shape.hidden_size * NORM_INPUT_BYTES
    score_bytes = shape.num_heads * workload.seq_length * SCORE_BYTES[workload.attention]
    return tensors * workload.residual_bytes + norm_bytes + score_bytes + _count_lora_input_bytes(shape, workload)


def _count_lora_input_bytes(shape: ModelShape, workload: Workload) -> int:
    """Bytes that one layer's adapters keep of their inputs, per token."""
    targets = shape.target_linears(workload.targets)
    if workload.fp32_parameters == "all" and not workload.lora_dropout:
        # No cast and no mask: modules that read the same tensor share it, and attention's output is counted already.
        hidden_readers = {"q_proj": 1, "gate_proj": 1, "down_proj": shape.intermediate_size / shape.hidden_size}
        return int(4 * shape.hidden_size * sum(share for name, share in hidden_readers.items() if name in targets))
    mask_bytes = DROPOUT_MASK_BYTES[workload.device_kind] if workload.lora_dropout else 0
    return sum(d_in for d_in, _ in targets.values()) * (workload.compute_bytes + mask_bytes)


def _count_logits_bytes(shape: ModelShape, workload: Workload, bytes_per_logit: int) -> int:
    if workload.loss == "tiled":
        tile = min(workload.num_tokens, TILE_TOKENS) * min(shape.vocab_size, TILE_VOCABULARY)
        copies = TILE_CPU_COPY_BYTES if workload.device_kind == "cpu" else 0
        return tile * (workload.compute_bytes + copies)
    logits_bytes = workload.num_tokens * shape.vocab_size * bytes_per_logit
    return logits_bytes // LOSS_CHUNKS if workload.loss == "chunked" else logits_bytes
