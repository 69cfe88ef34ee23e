"""Packs of trials for the contracts of the packed engine: an engine, sets of trials, and one pack's run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qlora_ray.data import PreparedData
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.training.engine import EngineEvent, Preemption, Report, TrainingData, TrialSpec
from qlora_ray.training.packed.engine import PackedEngine
from tests.contracts.bench import Bench, bench, losses, make_spec, run_trial

__all__ = ["bench"]

NUM_REPORTS = 3
# The contract's bounds, relative.
SAME_RANKS = 1e-6
MIXED_RANKS = 1e-4
OTHER_ENGINE = 1e-4
# 8-bit moments are quantized in other blocks by the other engine; without any moments losses differ by over 5e-3.
OTHER_BLOCKS = 3e-3


def make_engine(base: LoadedBase, data: PreparedData, **options: Any) -> PackedEngine:
    """An engine of four slots on a base."""
    return PackedEngine(
        base,
        TrainingData(data.train, data.validation),
        **{"slots": 4, "max_tokens_per_micro_batch": 2048, **options},
    )


@pytest.fixture
def engine(bench: Bench) -> PackedEngine:
    """An engine on the shared base."""
    return make_engine(bench.base, bench.data)


def run_pack(
    engine: PackedEngine, specs: list[TrialSpec], *, on_event: Callable[[EngineEvent], None] = lambda event: None
) -> dict[str, list[Report]]:
    """Trains trials together to their ends or preemptions; they are gone afterwards."""
    for spec in specs:
        engine.admit(spec)
    seen: dict[str, list[Report]] = {spec.trial_id: [] for spec in specs}
    while events := engine.advance():
        for event in events:
            on_event(event)
            if isinstance(event, Report):
                seen[event.trial_id].append(event)
            if isinstance(event, Preemption) or event.is_final:
                engine.evict(event.trial_id)
            else:
                engine.proceed(event.trial_id)
    return seen


def alone(engine: PackedEngine, spec: TrialSpec) -> list[tuple[float, float]]:
    """A trial's losses without neighbours."""
    reports = run_trial(engine, spec)
    engine.evict(spec.trial_id)
    return losses(reports)


def assert_close(one: list[tuple[float, float]], other: list[tuple[float, float]], *, rel: float) -> None:
    assert len(one) == len(other) == NUM_REPORTS
    for first, second in zip(one, other, strict=True):
        assert first == pytest.approx(second, rel=rel)


SAME_RANK_SPECS = [
    make_spec("0000", learning_rate=2e-3),
    make_spec("0001", lora={"lora_dropout": 0.0}, learning_rate=5e-4, lr_scheduler_type="cosine", data_seed=3),
    make_spec("0002", lora={"lora_dropout": 0.3}, per_device_train_batch_size=2, max_samples=18, seed=11),
    make_spec(
        "0003", lora={"alpha_ratio": 0.5}, per_device_train_batch_size=1, gradient_accumulation_steps=3, max_samples=27
    ),
]
MIXED_SPECS = [
    make_spec("0000", lora={"r": 4}),
    make_spec("0001", lora={"r": 12, "target_modules": "attention-qv"}, learning_rate=1e-3),
    make_spec("0002", lora={"r": 32, "target_modules": "attention", "lora_dropout": 0.0}, weight_decay=0.01),
    make_spec("0003", lora={"r": 8, "target_modules": ["down_proj"], "use_rslora": True}, seed=5),
]
