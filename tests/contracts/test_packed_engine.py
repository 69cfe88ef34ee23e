"""The `packed` engine against the engine contract, and what is its alone."""

from __future__ import annotations

from qlora_ray.data import PreparedData
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.training.engine import TrainingData
from qlora_ray.training.packed.engine import PackedEngine
from tests.contracts.engine_contract import EngineContract, bench

__all__ = ["bench"]


class TestPackedEngine(EngineContract):
    """The contract suite on PackedEngine."""

    def make_engine(self, base: LoadedBase, data: PreparedData, *, max_micro_batch: int = 8) -> PackedEngine:
        """An engine of four slots."""
        return PackedEngine(
            base, TrainingData(data.train, data.validation), slots=4, max_tokens_per_micro_batch=256 * max_micro_batch
        )
