"""The `fused` engine against the engine contract, and what is its alone."""

from __future__ import annotations

from engine_contract import EngineContract, bench

from qlora_ray.data import PreparedData
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.training.packed.engine import FusedEngine
from qlora_ray.training.rows import TrainingData

__all__ = ["bench"]


class TestFusedEngine(EngineContract):
    """The contract suite on FusedEngine."""

    def make_engine(self, base: LoadedBase, data: PreparedData, *, max_micro_batch: int = 8) -> FusedEngine:
        """An engine of four slots."""
        return FusedEngine(
            base, TrainingData(data.train, data.validation), slots=4, max_tokens_per_pass=256 * max_micro_batch
        )
