"""How many tokens a device trains per second, where nobody has measured it: by its data sheet, and not exactly."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_ray.hardware.catalogue import find_class
from qlora_ray.hardware.plan import Placement
from qlora_ray.hardware.shape import ModelShape

# Share of the peak that a training step's products reach. 10 % where matrices are small or a GPU waits for its host; at
# best 70 %: torchtune's README has 2,413 tokens/s for QLoRA of Llama 3.1 8B on a 4090, compiled, which is 64 %.
LEAST_UTILIZATION, MOST_UTILIZATION = 0.10, 0.70
# Dequantizing NF4 reads half a byte of each weight and writes two, at about this share of the memory's bandwidth.
DEQUANTIZED_BYTES = 2.5
BANDWIDTH_SHARE = 0.7
# A kernel takes so long to start, from C++ and from Python, and a decoder layer with seven adapted modules has about so
# many of them in one pass: what small bases are slow by. Choices until measured.
LAUNCH_S = (5e-6, 20e-6)
LAUNCHES_PER_LAYER = 150
# What training takes of one core, in FLOP/s of fp32 products: the packed engine reached 47e9 on the embedded base, on a
# core whose largest products run at 100e9 (docs/measured.md). Older cores have a quarter of its lanes.
CORE_FLOPS = (10e9, 60e9)


@dataclass(frozen=True)
class Speed:
    """Tokens that one device trains per second: the least and the most, and where the two are from."""

    least: float
    most: float
    source: str

    def times(self, number: int) -> Speed:
        """Of so many devices."""
        return Speed(self.least * number, self.most * number, self.source)


def count_passes(placement: Placement) -> int:
    """Passes through the layers per step: forward, back to the inputs (the base is frozen), and recomputing forward."""
    return 3 if placement.gradient_checkpointing else 2


def count_flops_per_token(shape: ModelShape, placement: Placement) -> float:
    """Floating-point operations that training takes per token: 2 per weight and pass, head and attention included.

    Source: Kaplan et al., arXiv 2001.08361, section 2.1, with a frozen base: no gradient of its weights.
    """
    assert placement.workload is not None
    linears = 2 * shape.num_linear_parameters
    # Scores and their products with values, over half of the length: a token looks back.
    attention = 2 * shape.num_layers * placement.workload.seq_length * shape.num_heads * shape.head_dim
    adapters = 2 * 3 * shape.num_adapter_parameters(placement.workload.targets, placement.workload.r)
    head = 2 * 2 * shape.hidden_size * shape.vocab_size
    return count_passes(placement) * (linears + attention) + adapters + head


def estimate_speed(shape: ModelShape, placement: Placement) -> Speed | None:
    """Tokens per second of one device of a class, all its slots together; None where the class is not known.

    Args:
        shape: The base.
        placement: The plan for the class.
    """
    flops = count_flops_per_token(shape, placement)
    if placement.device_kind == "cpu":
        cores = placement.num_threads * placement.executors_per_device
        least, most = (cores * each / flops for each in CORE_FLOPS)
        words = f"by {CORE_FLOPS[0] / 1e9:.0f} to {CORE_FLOPS[1] / 1e9:.0f} GFLOP/s of each of {cores} threads"
        return Speed(least, most, words)
    if placement.gpu_class is None or placement.workload is None:
        return None
    gpu = find_class(placement.gpu_class)
    peak = 1e12 * (gpu.fp32_tflops if placement.precision.name == "fp32" else gpu.half_tflops)
    tokens = placement.workload.num_tokens
    passes = count_passes(placement)
    is_dequantized = placement.workload.method in ("nf4", "fp4") and not placement.hold_dequantized
    moved_bytes = DEQUANTIZED_BYTES * shape.num_linear_parameters * passes if is_dequantized else 0.0
    moving_s = moved_bytes / (BANDWIDTH_SHARE * 1e9 * gpu.bandwidth_gb_s) / tokens
    launches = LAUNCHES_PER_LAYER * shape.num_layers * passes
    slowest_s, fastest_s = (
        max(flops / (peak * share) + moving_s, launches * launch_s / tokens)
        for share, launch_s in ((LEAST_UTILIZATION, LAUNCH_S[1]), (MOST_UTILIZATION, LAUNCH_S[0]))
    )
    is_launching = slowest_s == launches * LAUNCH_S[1] / tokens
    words = "the time that kernels take to start" if is_launching else f"10 to 70 % of its peak ({gpu.sheet})"
    return Speed(1 / slowest_s, 1 / fastest_s, f"by {words}: within a factor of {slowest_s / fastest_s:.0f}")
