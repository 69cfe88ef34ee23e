"""The number format of an executor: what its device has, and on a processor with bf16 units what was measured there."""

from __future__ import annotations

from dataclasses import replace

from qlora_ray.config.schema import SweepConfig
from qlora_ray.hardware import NodeProfile, PrecisionChoice, choose_precision
from qlora_ray.hardware.cpu_bf16 import find_speedup, name_processor, name_step
from qlora_ray.modeling.bf16_step import measure_bf16_speedup
from qlora_ray.modeling.loading import read_shape


def find_precision(node: NodeProfile, config: SweepConfig, *, num_threads: int) -> PrecisionChoice:
    """Returns what a node's first device computes in; measures a step in both formats where that decides.

    The plan knows what was measured on the node before, and takes fp32, which needs more memory, where nothing was.
    Here, before the base is loaded, the answer is found, and stands in every record.

    Args:
        node: As probed by the executor itself.
        config: Has the format that is asked for, and the base.
        num_threads: The executor's CPU threads.

    Raises:
        PlacementError: The device cannot compute in what is asked for.
    """
    device, requested = node.devices[0], config.training.precision
    if not device.bf16_flags or device.held_precision is not None or requested != "auto":
        return choose_precision(device, requested=requested)
    shape = read_shape(config.model)
    step = name_step(shape, num_threads=num_threads)
    processor = name_processor(node.cpu_name, device.bf16_flags)
    speedup = find_speedup(processor, step, measure=lambda: measure_bf16_speedup(shape))
    return choose_precision(replace(device, bf16_speedups={step: speedup}), step=step)
