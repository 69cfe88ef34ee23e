"""Which engine a placement asks for: one entry per engine name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_ray.config.schema import Evaluate
from qlora_ray.hardware import Placement
from qlora_ray.training.engine import Engine

if TYPE_CHECKING:
    from qlora_ray.modeling.loading import LoadedBase
    from qlora_ray.scoring.metrics.choice import Metric
    from qlora_ray.training.engine import TrainingData


def make_engine(
    placement: Placement,
    base: LoadedBase,
    data: TrainingData,
    *,
    memory_limit_bytes: int | None,
    evaluate: Evaluate,
    metrics: list[Metric],
) -> Engine:
    """The engine that the placement asks for."""
    if placement.engine == "single":
        from qlora_ray.training.single.engine import SingleEngine

        return SingleEngine(
            base,
            data,
            max_micro_batch=placement.max_micro_batch,
            max_eval_batch=placement.eval_batch,
            evaluate=evaluate,
            metrics=metrics,
        )
    from qlora_ray.training.packed.engine import PackedEngine

    assert placement.max_tokens_per_micro_batch is not None
    return PackedEngine(
        base,
        data,
        slots=placement.slots_per_executor,
        max_tokens_per_micro_batch=placement.max_tokens_per_micro_batch,
        hold_dequantized=placement.hold_dequantized,
        max_eval_batch=placement.eval_batch,
        memory_limit_bytes=memory_limit_bytes,
        evaluate=evaluate,
        metrics=metrics,
    )
