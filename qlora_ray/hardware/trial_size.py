"""How much memory one trial wants, so that trials can be ordered by it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qlora_ray.config.schema import SweepConfig
from qlora_ray.hardware.memory import estimate_memory
from qlora_ray.hardware.plan import Placement
from qlora_ray.hardware.shape import ModelShape


@dataclass(frozen=True)
class TrialSizes:
    """Sizes of a sweep's trials by the memory model, all on one device, so that they can be compared.

    Attributes:
        shape: The base.
        placement: The device.
    """

    shape: ModelShape
    placement: Placement

    def count_bytes(self, config: SweepConfig) -> int:
        """Returns the bytes of a process that trains this trial alone, in micro-batches as large as its config says.

        Args:
            config: The trial's, with its values of the search space.
        """
        workload = self.placement.workload
        if workload is None:
            return 0
        lora, training = config.lora, config.training
        targets = lora.target_modules
        alone = replace(
            workload,
            r=lora.r,
            targets=targets if isinstance(targets, str) else tuple(targets),
            modules_to_save=tuple(lora.modules_to_save or ()),
            lora_dropout=lora.lora_dropout,
            optim=training.optim,
            micro_batch=training.per_device_train_batch_size,
            micro_batch_tokens=None,
            gradient_checkpointing=training.recomputes(planned=self.placement.gradient_checkpointing),
            num_trials=1,
        )
        return estimate_memory(self.shape, alone).total_bytes
