"""The `single` engine against the engine contract, and what is its alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qlora_ray.config.schema import Model, Quantization
from qlora_ray.data import PreparedData
from qlora_ray.modeling.loading import LoadedBase, load_base
from qlora_ray.modeling.quantization import specify_quantization
from qlora_ray.training.engine import EngineEvent, Report, TrainingData
from qlora_ray.training.single import run as sft_run
from qlora_ray.training.single.engine import SingleEngine
from tests.contracts.bench import BATCH, NO_ROOM, Bench, bench, losses, make_spec, run_trial
from tests.contracts.engine_contract import EngineContract
from tests.contracts.head_contract import HeadContract
from tests.contracts.precision_contract import PrecisionContract
from tests.contracts.state_contract import StateContract

__all__ = ["bench"]


class TestSingleEngine(EngineContract, PrecisionContract, StateContract, HeadContract):
    """The contract suite on SingleEngine."""

    def make_engine(self, base: LoadedBase, data: PreparedData, *, max_micro_batch: int = 8) -> SingleEngine:
        """An engine with its one slot free."""
        return SingleEngine(base, TrainingData(data.train, data.validation), max_micro_batch=max_micro_batch)

    def watch_steps(self, monkeypatch: pytest.MonkeyPatch, do: Callable[[int], None]) -> None:
        """By the micro-batches of SFTTrainer: a step has one here."""
        training_step = sft_run.OrderedTrainer.training_step

        def watch(trainer: sft_run.OrderedTrainer, *args: object, **kwargs: object) -> torch.Tensor:
            do(trainer.start_step + trainer.state.global_step + 1)
            return training_step(trainer, *args, **kwargs)

        monkeypatch.setattr(sft_run.OrderedTrainer, "training_step", watch)

    @pytest.mark.parametrize("max_micro_batch", [1, 2])
    def test_the_micro_batch_is_the_placements_and_changes_no_result(self, bench: Bench, max_micro_batch: int) -> None:
        spec = make_spec(lora={"lora_dropout": 0.0})
        engine = self.make_engine(bench.base, bench.data)
        whole = run_trial(engine, spec)
        engine.evict("0000")
        small = self.make_engine(bench.base, bench.data, max_micro_batch=max_micro_batch)
        parts = run_trial(small, spec)
        small.evict("0000")
        assert parts[-1].facts["micro_batch"] == max_micro_batch
        assert parts[-1].facts["gradient_accumulation_steps"] == BATCH // max_micro_batch
        for (eval_a, train_a), (eval_b, train_b) in zip(losses(whole), losses(parts), strict=True):
            assert eval_b == pytest.approx(eval_a, rel=1e-4)
            assert train_b == pytest.approx(train_a, rel=1e-4)

    def test_dora_trains(self, bench: Bench) -> None:
        engine = self.make_engine(bench.base, bench.data)
        reports = run_trial(engine, make_spec(lora={"use_dora": True}))
        engine.evict("0000")
        assert reports[-1].failure is None
        assert reports[-1].metrics["eval_loss"] < reports[0].metrics["eval_loss"]

    def test_out_of_memory_halves_the_micro_batch_and_loses_nothing(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = make_spec(lora={"lora_dropout": 0.0})
        engine = self.make_engine(bench.base, bench.data)
        whole = run_trial(engine, spec)
        engine.evict("0000")
        step = sft_run.OrderedTrainer.training_step

        def fail_once_at_step_5(trainer: sft_run.OrderedTrainer, *args: object, **kwargs: object) -> torch.Tensor:
            if trainer.args.per_device_train_batch_size == 4 and trainer.state.global_step == 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
            return step(trainer, *args, **kwargs)

        monkeypatch.setattr(sft_run.OrderedTrainer, "training_step", fail_once_at_step_5)
        halved = run_trial(engine, spec)
        engine.evict("0000")
        assert halved[-1].failure is None
        assert [report.index for report in halved] == [1, 2, 3]
        assert halved[-1].facts["micro_batch"] == 2
        for (eval_a, _), (eval_b, _) in zip(losses(whole), losses(halved), strict=True):
            assert eval_b == pytest.approx(eval_a, rel=1e-4)

    @pytest.mark.parametrize("error", [error for error, _ in NO_ROOM])
    def test_out_of_memory_at_one_row_is_the_trials_failure(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(trainer: sft_run.OrderedTrainer, *args: object, **kwargs: object) -> torch.Tensor:
            raise error

        engine = self.make_engine(bench.base, bench.data, max_micro_batch=1)
        monkeypatch.setattr(sft_run.OrderedTrainer, "training_step", fail)
        reports = run_trial(engine, make_spec())
        engine.evict("0000")
        assert reports[-1].failure is not None
        assert reports[-1].failure.cause == "oom"

    def test_a_report_that_comes_after_its_trial_has_left_holds_up_nobody(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = self.make_engine(bench.base, bench.data)
        next_event = sft_run.SingleRun.next_event

        def report_late(run: sft_run.SingleRun) -> EngineEvent | None:
            event = next_event(run)
            if run.spec.trial_id == "0000":
                engine.evict("0000")
                engine.admit(make_spec("0001"))
            return event

        monkeypatch.setattr(sft_run.SingleRun, "next_event", report_late)
        engine.admit(make_spec("0000"))
        assert engine.advance() == []
        (report,) = engine.advance()
        engine.evict("0001")
        assert isinstance(report, Report)
        assert (report.trial_id, report.index) == ("0001", 1)

    @pytest.mark.parametrize("method", ["fp4", "int8", "none"])
    def test_other_quantizations_train_too(self, bench: Bench, method: str) -> None:
        model = Model(quantization=Quantization(method=method))
        spec = specify_quantization(model.quantization, compute_dtype="fp32")
        engine = self.make_engine(load_base(model, quantization=spec, device="cpu"), bench.data)
        reports = run_trial(engine, make_spec())
        engine.evict("0000")
        assert reports[-1].failure is None, reports[-1].failure
        assert reports[-1].metrics["eval_loss"] < reports[0].metrics["eval_loss"]
        assert reports[-1].facts["quantization"]["method"] == method
