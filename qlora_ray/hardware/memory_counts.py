"""What each part of a training process takes: the counts that the memory model adds up, each with its source."""

from __future__ import annotations

import math

from qlora_ray.errors import ConfigError
from qlora_ray.formats import GIB, MIB
from qlora_ray.hardware.shape import ModelShape
from qlora_ray.hardware.workload import Workload

# Bytes per quantized weight. NF4 and FP4: 4 bits and one fp32 scale per 64 weights; double quantization: one byte per
# 64 and one fp32 per 64 * 256 (QLoRA, arXiv 2305.14314, section 3). int8: one byte; its fp32 scales are per row.
BLOCKWISE_BYTES = 0.5 + 4 / 64
DOUBLE_QUANTIZED_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
INT8_BYTES = 1.0
# GPTQ and AWQ: per group a scale in 16 bits and a zero point of the weights' own bits (gptqmodel's qweight, scales and
# qzeros). GPTQ's g_idx is 4 bytes per input, which is nothing beside these.
GROUP_SCALE_BYTES = 2

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
# Linear4bit Llama with PEFT (torch 2.13, transformers 5.23, peft 0.21): the MLP's own (ModelShape.num_mlp_tensors); q,
# k, v and the output of attention; per norm one fp32 input.
ATTENTION_TENSORS = 4
NORM_INPUT_BYTES = 4
# Going back through the MLP, one layer's recompute also holds the gradients of two of its tensors.
MLP_GRADIENT_TENSORS = 2
# With PEFT each adapted module keeps its own input, cast for lora_A, and its dropout mask: four bytes an element on a
# CPU (torch 2.13; own count), a bool on CUDA (native_dropout).
DROPOUT_MASK_BYTES = {"cuda": 1, "cpu": 4}
# The packed engine (modeling/multi_lora/layers.py) keeps each input once, whoever reads it, and each module's
# mask, a byte an element. Modules by the input they share; the output of attention is counted among ATTENTION_TENSORS.
PACKED_READERS = (
    ("hidden", ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn")),
    ("hidden", ("gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc", "dense_h_to_4h")),
    ("intermediate", ("down_proj", "mlp.c_proj", "c_proj", "fc2", "dense_4h_to_h")),
)
# Beside the last hidden states: those at label positions, their gradient, and the one that goes from layer to layer.
PACKED_HEAD_TENSORS = 3
# Going back through one module it holds the gradient of its input, the trials' share of that and the dropped input, and
# going back through a gate three gradients too.
PACKED_BACKWARD_TENSORS = 3
PACKED_MASK_BYTES = 1
# The hash that masks start from, two bytes an element of one row of each width, and room for rows twice as long.
PACKED_COUNTER_BYTES = 2 * 2
# Ranks in a pack are padded to the next power of two, at least 8, so that trials of like rank share one product.
SMALLEST_RANK_BUCKET = 8
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
# The packed engine and the evaluation make logits at label positions only, in chunks of this many fp32 bytes
# (training/packed/loss.py, scoring/loss.py). Ours, not measured.
# A chunk has four copies in all: logits, log-softmax and a gradient of each.
LOGITS_CHUNK_BYTES = 128 * MIB
LOGITS_CHUNK_COPIES = 4
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
AMPERE = (8, 0)


def context_bytes_of(compute_capability: tuple[int, int] | None) -> int:
    """What a CUDA process holds besides its tensors."""
    return CONTEXT_BYTES_BEFORE_AMPERE if (compute_capability or AMPERE) < AMPERE else CONTEXT_BYTES


def count_dequantized_bytes(shape: ModelShape, workload: Workload) -> int:
    """The copy of the base in the compute dtype: one layer's, or all where it is held."""
    if workload.method == "none":
        return 0
    if workload.hold_dequantized:
        return shape.num_linear_parameters * workload.compute_bytes
    return max(d_in * d_out for d_in, d_out in shape.linears.values()) * workload.compute_bytes


def count_base_bytes(shape: ModelShape, workload: Workload) -> int:
    """The frozen base as it is stored."""
    plain_share = 0.0 if shape.stored is None else shape.stored.skipped_share
    weight_bytes = (1 - plain_share) * bytes_per_linear_weight(workload) + plain_share * workload.compute_bytes
    linear_bytes = shape.num_linear_parameters * weight_bytes
    if workload.method == "int8":
        rows = shape.num_layers * sum(d_out for _, d_out in shape.linears.values())
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
    if workload.method in ("gptq", "awq"):
        weight_bytes = workload.weight_bits / 8
        return weight_bytes + (GROUP_SCALE_BYTES + weight_bytes) / (workload.group_size or math.inf)
    return DOUBLE_QUANTIZED_BYTES if workload.double_quantization else BLOCKWISE_BYTES


def pad_rank(r: int) -> int:
    """The rank that an adapter takes in a pack: the next power of two, at least SMALLEST_RANK_BUCKET."""
    return max(SMALLEST_RANK_BUCKET, 1 << (r - 1).bit_length())


def count_adapter_bytes(shape: ModelShape, workload: Workload) -> int:
    """Weights, gradients and moments of all trials."""
    if workload.optim not in MOMENT_BYTES:
        raise ConfigError(
            f"training.optim must be one of {', '.join(MOMENT_BYTES)}, got {workload.optim!r}. Choose one of them."
        )
    trained = count_adapter_parameters(shape, workload)
    one_bytes = int(trained * (ADAPTER_WEIGHT_BYTES + ADAPTER_GRADIENT_BYTES + MOMENT_BYTES[workload.optim]))
    return workload.num_trials * one_bytes


def count_adapter_parameters(shape: ModelShape, workload: Workload) -> int:
    """Of one trial: its factors, its copies of embeddings or head, and its auxiliary heads."""
    r = pad_rank(workload.r) if workload.engine == "packed" else workload.r
    copies = len(workload.modules_to_save) * shape.vocab_size * shape.hidden_size
    return shape.num_adapter_parameters(workload.targets, r) + copies + workload.num_head_parameters


def count_layer_bytes_per_token(shape: ModelShape, workload: Workload) -> int:
    """Bytes that backward needs from one decoder layer, per token."""
    query_width = shape.num_heads * shape.head_dim
    tensors = shape.num_mlp_tensors * shape.intermediate_size + ATTENTION_TENSORS * query_width
    norm_bytes = shape.num_norms_per_layer * shape.hidden_size * NORM_INPUT_BYTES
    score_bytes = shape.num_heads * workload.seq_length * SCORE_BYTES[workload.attention]
    return tensors * workload.residual_bytes + norm_bytes + score_bytes + _count_lora_input_bytes(shape, workload)


def _count_lora_input_bytes(shape: ModelShape, workload: Workload) -> int:
    """Bytes that one layer's adapters keep of their inputs, per token."""
    targets = shape.target_linears(workload.targets)
    if workload.engine == "packed":
        widths = {"hidden": shape.hidden_size, "intermediate": shape.intermediate_size}
        inputs = sum(widths[width] for width, readers in PACKED_READERS if any(name in targets for name in readers))
        mask_bytes = PACKED_MASK_BYTES * sum(d_in for d_in, _ in targets.values()) if workload.lora_dropout else 0
        return (inputs + len(targets) * pad_rank(workload.r)) * workload.compute_bytes + mask_bytes
    if workload.fp32_parameters == "all" and not workload.lora_dropout:
        # No cast and no mask: modules that read the same tensor share it, and attention's output is counted already.
        hidden_readers = {"q_proj": 1, "gate_proj": 1, "down_proj": shape.intermediate_size / shape.hidden_size}
        return int(4 * shape.hidden_size * sum(share for name, share in hidden_readers.items() if name in targets))
    mask_bytes = DROPOUT_MASK_BYTES[workload.device_kind] if workload.lora_dropout else 0
    return sum(d_in for d_in, _ in targets.values()) * (workload.compute_bytes + mask_bytes)


def count_packed_backward_bytes(shape: ModelShape, workload: Workload) -> int:
    """What the packed engine holds while it goes back through its widest module, and the hash of its masks."""
    widths = {d_in for d_in, _ in shape.target_linears(workload.targets).values()}
    widest = max(shape.intermediate_size, *widths)
    counter_bytes = PACKED_COUNTER_BYTES * workload.seq_length * sum(widths) if workload.lora_dropout else 0
    return workload.num_tokens * PACKED_BACKWARD_TENSORS * widest * workload.compute_bytes + counter_bytes


def count_logits_bytes(shape: ModelShape, workload: Workload, bytes_per_logit: int) -> int:
    """The largest piece of logits there is at once, with its copies."""
    if workload.loss == "labels":
        # At least one position's, however large the vocabulary.
        chunk_bytes = max(min(workload.num_tokens * shape.vocab_size * 4, LOGITS_CHUNK_BYTES), 4 * shape.vocab_size)
        return LOGITS_CHUNK_COPIES * chunk_bytes
    if workload.loss == "tiled":
        tile = min(workload.num_tokens, TILE_TOKENS) * min(shape.vocab_size, TILE_VOCABULARY)
        copies = TILE_CPU_COPY_BYTES if workload.device_kind == "cpu" else 0
        return tile * (workload.compute_bytes + copies)
    logits_bytes = workload.num_tokens * shape.vocab_size * bytes_per_logit
    return logits_bytes // LOSS_CHUNKS if workload.loss == "chunked" else logits_bytes
