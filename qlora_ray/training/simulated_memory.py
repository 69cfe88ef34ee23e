"""The memory of a device that is not there: the memory model's own estimate, held against a limit.

It refuses what a device of that size would have no room for with the error that CUDA raises, so that engines answer a
simulated shortage as they answer a real one.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from qlora_ray.config.schema import Lora, SweepConfig
from qlora_ray.formats import GIB, format_gib
from qlora_ray.hardware import ModelShape, Placement, Workload, estimate_evaluation_bytes, estimate_memory
from qlora_ray.hardware.catalogue import find_class
from qlora_ray.hardware.memory_counts import FRAGMENTATION


class SimulatedMemory:
    """What one executor may take of a simulated device.

    Args:
        shape: The base.
        workload: The executor at its fullest, as planned: quantization, precision, attention and optimizer are its.
        limit_bytes: All that its process may take, CUDA context and fragmentation included.
        device_name: For the message.
    """

    def __init__(self, shape: ModelShape, workload: Workload, *, limit_bytes: int, device_name: str) -> None:
        self._shape = shape
        # One trial: adapters are counted by those that are here.
        self._workload = replace(workload, num_trials=1)
        self._limit_bytes = limit_bytes
        self._device_name = device_name
        self._lock = threading.Lock()
        self._planned_adapter_bytes = estimate_memory(shape, self._workload).adapter_bytes
        # None: whatever was planned.
        self._adapter_bytes: int | None = None

    def hold_adapters(self, num_bytes: int) -> None:
        """Adapters with gradients and moments that are in memory from now on.

        Raises:
            torch.OutOfMemoryError: There is no room for them beside the base.
        """
        with self._lock:
            grows = num_bytes > (self._adapter_bytes or 0)
            self._adapter_bytes = num_bytes
        if not grows:
            # Memory that is given back needs none.
            return
        # A single token: what a step needs besides is asked for when it comes.
        smallest = replace(self._workload, micro_batch=1, micro_batch_tokens=1)
        self._check(estimate_memory(self._shape, smallest).total_bytes)

    def hold_trial(self, lora: Lora, *, optim: str) -> None:
        """The adapter of one trial, alone, in place of what was held before; for engines that count no bytes.

        Args:
            lora: Its adapter.
            optim: Its optimizer, which decides the moments.

        Raises:
            torch.OutOfMemoryError: There is no room for it beside the base.
        """
        targets = lora.target_modules
        trial = replace(
            self._workload,
            r=lora.r,
            targets=targets if isinstance(targets, str) else tuple(targets),
            modules_to_save=tuple(lora.modules_to_save or ()),
            optim=optim,
        )
        self.hold_adapters(0)
        self.hold_adapters(estimate_memory(self._shape, trial).adapter_bytes)

    def take_step(self, *, num_tokens: int, longest: int, recomputes: bool) -> None:
        """One micro-batch, forward and backward.

        Args:
            num_tokens: Padded tokens.
            longest: Tokens of its longest row.
            recomputes: Whether activations are recomputed.

        Raises:
            torch.OutOfMemoryError: It does not fit.
        """
        step = replace(
            self._workload,
            micro_batch_tokens=num_tokens,
            seq_length=longest,
            gradient_checkpointing=recomputes,
        )
        self._check(estimate_memory(self._shape, step).total_bytes)

    def take_evaluation(self, *, num_rows: int, longest: int) -> None:
        """Rows that are scored at once, without gradients.

        Raises:
            torch.OutOfMemoryError: They do not fit.
        """
        rows = replace(self._workload, micro_batch=num_rows, seq_length=longest, micro_batch_tokens=None)
        self._check(estimate_evaluation_bytes(self._shape, rows))

    def _check(self, total_bytes: int) -> None:
        """Holds an estimate, whose adapters are exchanged for those that are here, against the limit."""
        import torch

        with self._lock:
            held_bytes = self._adapter_bytes
        adapter_bytes = self._planned_adapter_bytes if held_bytes is None else held_bytes
        needed_bytes = total_bytes + int((1 + FRAGMENTATION) * (adapter_bytes - self._planned_adapter_bytes))
        if needed_bytes > self._limit_bytes:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. {self._device_name} has {format_gib(self._limit_bytes)} for this process, and "
                f"{format_gib(needed_bytes)} are needed."
            )


def simulate_memory(placement: Placement, config: SweepConfig) -> SimulatedMemory:
    """Returns the memory of one executor of a simulated class: its share of the device, or of what the config sets.

    Args:
        placement: The plan for the class.
        config: Has the base, and `cluster.simulated_limits_gib`.
    """
    from qlora_ray.modeling.loading import read_shape
    from qlora_ray.modeling.shape import count_shape
    from qlora_ray.modeling.targets import build_skeleton

    assert placement.simulates is not None and placement.workload is not None
    simulated = find_class(placement.simulates)
    limits = {find_class(name).name: limit for name, limit in config.cluster.simulated_limits_gib.items()}
    limit_gib = limits.get(simulated.name)
    device_bytes = placement.available_bytes if limit_gib is None else int(limit_gib * GIB)
    return SimulatedMemory(
        count_shape(build_skeleton(config.model), read_shape(config.model)),
        placement.workload,
        limit_bytes=device_bytes // placement.executors_per_device,
        device_name=placement.device_name,
    )
