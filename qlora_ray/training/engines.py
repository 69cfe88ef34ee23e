"""The engines that a placement can name: one line adds one."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

from qlora_ray.config.schema import Evaluate
from qlora_ray.hardware import Placement
from qlora_ray.training.engine import Engine

if TYPE_CHECKING:
    from qlora_ray.modeling.loading import LoadedBase
    from qlora_ray.scoring.metrics.metric import Metric
    from qlora_ray.training.engine import TrainingData
    from qlora_ray.training.simulated_memory import SimulatedMemory

# Engine name -> a function with the arguments of `make_engine`, as `module:attribute`: imported when it is chosen.
ENGINES = {
    "packed": "qlora_ray.training.packed.engine:make_engine",
    "single": "qlora_ray.training.single.engine:make_engine",
}


def make_engine(
    placement: Placement,
    base: LoadedBase,
    data: TrainingData,
    *,
    memory_limit_bytes: int | None,
    memory: SimulatedMemory | None = None,
    evaluate: Evaluate,
    metrics: list[Metric],
) -> Engine:
    """Returns the engine that a placement names.

    Args:
        placement: The planner's sizes for this device.
        base: The frozen base, loaded on it.
        data: Training and validation rows.
        memory_limit_bytes: What this process may reserve on a GPU; None on a CPU.
        memory: The memory of the device that this one stands for; None on a real one.
        evaluate: How the engine's `score` generates answers.
        metrics: What it measures besides the loss.
    """
    engine: Engine = pkgutil.resolve_name(ENGINES[placement.engine])(
        placement, base, data, memory_limit_bytes=memory_limit_bytes, memory=memory, evaluate=evaluate, metrics=metrics
    )
    return engine
