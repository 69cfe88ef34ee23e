"""What every engine promises of a state: its trial goes on as if nothing had happened. Taken beside EngineContract."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qlora_ray.runs.paths import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import UNEVALUATED, Engine
from tests.contracts.bench import (
    NO_ROOM,
    NUM_REPORTS,
    NUM_STEPS,
    Bench,
    load_nf4,
    losses,
    make_spec,
    run_trial,
    save_both_ways,
)
from tests.contracts.plain_torch import plain_continued_losses


class StateContract:
    """Each clause a test."""

    def test_a_trial_restored_from_disk_goes_on_as_if_nothing_had_happened(
        self, engine: Engine, bench: Bench, tmp_path: Path
    ) -> None:
        whole = run_trial(engine, make_spec())
        engine.evict("0000")
        first = run_trial(engine, make_spec(), num_reports=1)
        state = engine.snapshot("0000")
        assert state is not None
        state.save(tmp_path / "state")
        engine.evict("0000")
        other = self.make_engine(load_nf4(), bench.data)
        rest = run_trial(other, make_spec(), state=TrialState.load(tmp_path / "state"))
        other.evict("0000")
        assert losses(first + rest) == losses(whole)

    def test_the_adapter_that_is_taken_out_of_a_state_is_the_one_that_the_engine_saves(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        run_trial(engine, make_spec(), num_reports=1)
        save_both_ways(engine, tmp_path)
        saved, taken = (load_file(tmp_path / name / ADAPTER_WEIGHTS) for name in ("saved", "taken"))
        assert saved.keys() == taken.keys() and all(torch.equal(saved[name], taken[name]) for name in saved)
        configs = [json.loads((tmp_path / name / ADAPTER_CONFIG).read_text()) for name in ("saved", "taken")]
        # The packed engine's dropout is rounded to what its masks can draw, and its facts say so.
        dropouts = [config.pop("lora_dropout") for config in configs]
        assert dropouts[1] == pytest.approx(dropouts[0], abs=1e-4)
        for config in configs:
            config["target_modules"] = sorted(config["target_modules"])
            del config["base_model_name_or_path"]
        assert configs[0] == configs[1]

    def test_a_state_goes_on_under_other_values_as_a_hand_written_continuation_of_it(
        self, engine: Engine, bench: Bench, tmp_path: Path
    ) -> None:
        lora = {"lora_dropout": 0.0}
        values = {"lr_scheduler_type": "cosine", "logging_steps": 1}
        run_trial(engine, make_spec(lora=lora, **values), num_reports=1)
        snapshot = engine.snapshot("0000")
        assert snapshot is not None
        snapshot.save(tmp_path / "state")
        engine.evict("0000")
        state = TrialState.load(tmp_path / "state")
        changed = make_spec("0001", lora=lora, learning_rate=8e-3, weight_decay=0.1, **values)
        rest = run_trial(engine, changed, state=state)
        engine.evict("0001")
        seen = [loss for report in rest for _, loss in report.train_losses]
        assert seen == pytest.approx(plain_continued_losses(changed, bench.base, bench.data, state), rel=2e-4)
        # Without the new values it would have been others.
        kept = run_trial(engine, make_spec("0002", lora=lora, **values), state=state)
        engine.evict("0002")
        others = [loss for report in kept for _, loss in report.train_losses]
        assert others[:1] == pytest.approx(seen[:1], rel=1e-5)
        assert others[2:] != pytest.approx(seen[2:], rel=1e-3)

    @pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
    def test_8_bit_moments_survive_a_restore(self, engine: Engine, tmp_path: Path, optim: str) -> None:
        spec = make_spec(optim=optim)
        whole = run_trial(engine, spec)
        engine.evict("0000")
        run_trial(engine, spec, num_reports=2)
        state = engine.snapshot("0000")
        assert state is not None
        state.save(tmp_path / "state")
        engine.evict("0000")
        rest = run_trial(engine, spec, state=TrialState.load(tmp_path / "state"))
        engine.evict("0000")
        assert losses(rest) == losses(whole[2:])

    @pytest.mark.parametrize("num_trained", [1, NUM_REPORTS])
    def test_a_state_kept_before_an_evaluation_goes_on_to_the_same_report(
        self, engine: Engine, bench: Bench, tmp_path: Path, num_trained: int
    ) -> None:
        whole = run_trial(engine, make_spec(logging_steps=2))
        engine.evict("0000")
        told: list[bool] = []

        def keep(trial_id: str, is_final: bool) -> None:
            told.append(is_final)
            if len(told) == num_trained:
                state = engine.snapshot(trial_id)
                assert state is not None and state.has_pending_report
                state.save(tmp_path / "state")
                engine.save_adapter(trial_id, tmp_path / "adapter")

        engine.on_trained(keep)
        run_trial(engine, make_spec(logging_steps=2))
        engine.evict("0000")
        assert told == [False, False, True]
        other = self.make_engine(load_nf4(), bench.data)
        state = TrialState.load(tmp_path / "state")
        rest = run_trial(other, make_spec(logging_steps=2), state=state, num_reports=NUM_REPORTS - num_trained + 1)
        expected = whole[num_trained - 1 :]
        assert losses(rest) == losses(expected)
        for name in ("learning_rate", "step", "samples_seen"):
            assert [report.metrics[name] for report in rest] == [report.metrics[name] for report in expected]
        assert [report.train_losses for report in rest] == [report.train_losses for report in expected]
        assert [(report.index, report.is_final) for report in rest] == [
            (report.index, report.is_final) for report in expected
        ]
        other.save_adapter("0000", tmp_path / "later")
        other.evict("0000")
        if num_trained == NUM_REPORTS:
            name = "adapter_model.safetensors"
            assert (tmp_path / "later" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()

    @pytest.mark.parametrize(("error", "message"), NO_ROOM)
    def test_a_trial_that_cannot_be_evaluated_keeps_what_it_has_trained(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise error

        whole = run_trial(engine, make_spec(gradient_checkpointing=True))
        engine.evict("0000")
        with monkeypatch.context() as patched:
            patched.setattr("qlora_ray.scoring.loss.map_batches", fail)
            (report,) = run_trial(engine, make_spec(gradient_checkpointing=True))
        assert report.failure is not None
        assert report.failure.cause == "unevaluated"
        assert report.failure.message == f"{UNEVALUATED}: {message}"
        state = engine.snapshot("0000")
        engine.evict("0000")
        assert state is not None and state.has_pending_report and state.step == NUM_STEPS // NUM_REPORTS
        rest = run_trial(engine, make_spec(gradient_checkpointing=True), state=state)
        engine.evict("0000")
        assert losses(rest) == losses(whole)

    def test_a_report_that_was_owed_has_the_peak_of_the_training_to_it(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

        def use(peak_kib: int) -> None:
            monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=peak_kib))

        use(10_000)
        with monkeypatch.context() as patched:
            patched.setattr("qlora_ray.scoring.loss.map_batches", fail)
            run_trial(engine, make_spec())
        state = engine.snapshot("0000")
        engine.evict("0000")
        assert state is not None and state.has_pending_report
        state.save(tmp_path / "state")
        # As in another process, which has trained nothing yet.
        use(100)
        rest = run_trial(engine, make_spec(), state=TrialState.load(tmp_path / "state"))
        engine.evict("0000")
        assert [report.metrics["peak_memory_bytes"] for report in rest] == [10_000 * 1024, 100 * 1024, 100 * 1024]
