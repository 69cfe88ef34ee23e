"""What every engine promises of number formats. A test class takes it beside EngineContract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_ray.data import PreparedData
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import Engine
from tests.contracts.bench import (
    BF16_TOLERANCE,
    NUM_REPORTS,
    Bench,
    hash_weights,
    load_nf4,
    losses,
    make_spec,
    needs_bf16,
    run_trial,
)


class PrecisionContract:
    """Each clause a test."""

    def make_engine(self, base: LoadedBase, data: PreparedData, *, max_micro_batch: int = 8) -> Engine:
        """See EngineContract."""
        raise NotImplementedError

    @pytest.fixture
    def engine(self, bench: Bench) -> Engine:
        """An engine on the shared base."""
        return self.make_engine(bench.base, bench.data)

    @pytest.fixture(scope="class")
    def bf16_base(self) -> LoadedBase:
        """The base computing in bf16."""
        return load_nf4("bf16")

    @needs_bf16
    @pytest.mark.parametrize("settings", [{"lora": {"lora_dropout": 0.0}}, {"gradient_checkpointing": True}])
    def test_a_cpu_with_bf16_units_trains_in_bf16_to_the_losses_of_fp32(
        self, engine: Engine, bench: Bench, bf16_base: LoadedBase, settings: dict[str, Any]
    ) -> None:
        whole = run_trial(engine, make_spec(**settings))
        engine.evict("0000")
        before = hash_weights(bf16_base)
        other = self.make_engine(bf16_base, bench.data)
        reports = run_trial(other, make_spec(**settings))
        state = other.snapshot("0000")
        other.evict("0000")
        assert [report.failure for report in reports] == [None] * NUM_REPORTS
        assert losses(reports) != losses(whole)
        for got, expected in zip(losses(reports), losses(whole), strict=True):
            assert got == pytest.approx(expected, rel=BF16_TOLERANCE)
        # What does not depend on the format: samples seen, steps, learning rates.
        for name in ("step", "samples_seen", "learning_rate"):
            assert [report.metrics[name] for report in reports] == [report.metrics[name] for report in whole]
        facts = reports[-1].facts
        assert (facts["precision"], facts["training"]["bf16"], facts["training"]["fp16"]) == ("bf16", True, False)
        assert facts["effective_batch"] == whole[-1].facts["effective_batch"]
        # Adapters are fp32, and evaluations between the steps have not repacked the base (bitsandbytes 0.50).
        assert state is not None and {tensor.dtype for tensor in state.adapter.values()} == {torch.float32}
        assert not state.loss_scale
        assert hash_weights(bf16_base) == before

    @needs_bf16
    @pytest.mark.parametrize("goes_to", ["bf16", "fp32"])
    def test_a_trial_goes_on_in_another_format(
        self, engine: Engine, bench: Bench, bf16_base: LoadedBase, tmp_path: Path, goes_to: str
    ) -> None:
        whole = run_trial(engine, make_spec())
        engine.evict("0000")
        other = self.make_engine(bf16_base, bench.data)
        first, then = (engine, other) if goes_to == "bf16" else (other, engine)
        begun = run_trial(first, make_spec(), num_reports=1)
        state = first.snapshot("0000")
        assert state is not None
        state.save(tmp_path / "state")
        first.evict("0000")
        rest = run_trial(then, make_spec(), state=TrialState.load(tmp_path / "state"))
        then.evict("0000")
        for got, expected in zip(losses(begun + rest), losses(whole), strict=True):
            assert got == pytest.approx(expected, rel=BF16_TOLERANCE)
        assert [report.metrics["samples_seen"] for report in begun + rest] == [12, 24, 36]

    def test_adapters_and_moments_are_fp32_in_fp16_too(self, bench: Bench) -> None:
        # torch can autocast to fp16 on a CPU: the arithmetic of an fp16 GPU, slowly. No plan places trials so.
        engine = self.make_engine(load_nf4("fp16"), bench.data)
        reports = run_trial(engine, make_spec(lora={"lora_dropout": 0.0}))
        state = engine.snapshot("0000")
        engine.evict("0000")
        assert reports[-1].failure is None
        assert reports[-1].facts["training"]["fp16"] is True
        assert state is not None
        assert {tensor.dtype for tensor in state.adapter.values()} == {torch.float32}
        assert {tensor.dtype for tensor in state.optimizer.values() if tensor.is_floating_point()} == {torch.float32}
