"""The suite that every engine passes. Subclass EngineContract and give it `make_engine`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import PeftModel

from qlora_ray.data import PreparedData
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import Engine, Report
from tests.contracts.bench import (
    NUM_REPORTS,
    NUM_STEPS,
    Bench,
    hash_weights,
    load_nf4,
    losses,
    make_spec,
    run_trial,
    run_until_preempted,
)
from tests.contracts.plain_torch import plain_training_losses, plain_validation_loss


class Told:
    """Keeps what is told of a scoring's progress: of each part its name, the rows done, and all its rows."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, int, int]] = []

    def begin(self, what: str, total_rows: int) -> None:
        """A part begins."""
        self.parts.append((what, 0, total_rows))

    def add(self, num_rows: int) -> None:
        """Rows of it are done."""
        what, done, total = self.parts[-1]
        self.parts[-1] = (what, done + num_rows, total)


class EngineContract:
    """What `training.engine.Engine` promises, each clause a test."""

    def make_engine(self, base: LoadedBase, data: PreparedData, *, max_micro_batch: int = 8) -> Engine:
        """The engine under test on a base."""
        raise NotImplementedError

    def watch_steps(self, monkeypatch: pytest.MonkeyPatch, do: Callable[[int], None]) -> None:
        """Has `do` called with the number of each step that a trial takes, while it takes it, in every engine."""
        raise NotImplementedError

    @pytest.fixture
    def engine(self, bench: Bench) -> Engine:
        """An engine on the shared base."""
        return self.make_engine(bench.base, bench.data)

    def test_reports_come_at_equal_samples_and_the_last_is_final(self, engine: Engine) -> None:
        reports = run_trial(engine, make_spec())
        engine.evict("0000")
        assert [report.index for report in reports] == [1, 2, 3]
        assert [report.metrics["samples_seen"] for report in reports] == [12, 24, 36]
        assert [report.is_final for report in reports] == [False, False, True]
        assert all(report.failure is None for report in reports)
        assert all(math.isfinite(value) for report in reports for value in report.metrics.values())

    def test_a_trial_that_has_reported_waits_until_told_to_go_on(self, engine: Engine) -> None:
        engine.admit(make_spec())
        first = engine.advance()
        assert len(first) == 1
        assert engine.advance() == []
        engine.proceed("0000")
        second = engine.advance()
        engine.evict("0000")
        assert (first[0].index, second[0].index) == (1, 2)

    def test_its_progress_is_known_at_every_step_and_is_that_of_its_reports(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert engine.progress() == []
        steps: list[tuple[int, int]] = []
        self.watch_steps(monkeypatch, lambda step: steps.append((step, engine.progress()[0].step)))
        reports = run_trial(engine, make_spec(logging_steps=1))
        (progress,) = engine.progress()
        engine.evict("0000")
        assert steps == [(step, step - 1) for step in range(1, NUM_STEPS + 1)]
        assert (progress.trial_id, progress.step) == ("0000", NUM_STEPS)
        assert progress.eval_loss == reports[-1].metrics["eval_loss"]
        assert progress.train_loss == pytest.approx(reports[-1].train_losses[-1][1], rel=1e-5)
        assert progress.tokens_per_s is not None and progress.tokens_per_s > 0
        assert engine.progress() == []

    def test_a_full_engine_admits_no_more(self, engine: Engine) -> None:
        for slot in range(engine.slots):
            engine.admit(make_spec(f"{slot:04d}"))
        with pytest.raises(RuntimeError, match="slot"):
            engine.admit(make_spec("9999"))
        for slot in range(engine.slots):
            engine.evict(f"{slot:04d}")

    def test_evicting_a_stranger_does_nothing(self, engine: Engine) -> None:
        engine.evict("4711")
        engine.proceed("4711")
        assert engine.advance() == []

    @pytest.mark.parametrize("step", [2, 5])
    def test_a_trial_that_is_asked_to_leave_goes_on_elsewhere_from_that_very_step(
        self, engine: Engine, bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: int
    ) -> None:
        spec = make_spec(logging_steps=2)
        whole = run_trial(engine, spec)
        engine.evict("0000")
        taken: list[int] = []

        def ask_to_leave(number: int) -> None:
            taken.append(number)
            if number == step and taken.count(step) == 1:
                engine.request_preemption("0000", "node n is draining")

        self.watch_steps(monkeypatch, ask_to_leave)
        begun, preemption = run_until_preempted(engine, spec)
        assert preemption.reason == "node n is draining"
        assert engine.advance() == []
        state = engine.snapshot("0000")
        assert state is not None and (state.step, state.report_index) == (step, step // 3)
        state.save(tmp_path / "state")
        engine.evict("0000")
        other = self.make_engine(load_nf4(), bench.data)
        rest = run_trial(other, spec, state=TrialState.load(tmp_path / "state"), num_reports=NUM_REPORTS - len(begun))
        other.evict("0000")
        assert taken == list(range(1, NUM_STEPS + 1))
        assert losses(begun + rest) == losses(whole)
        assert [report.train_losses for report in begun + rest] == [report.train_losses for report in whole]
        # A trial that comes later is asked nothing.
        assert losses(run_trial(engine, spec, num_reports=1)) == losses(whole[:1])
        engine.evict("0000")

    def test_a_trial_that_is_asked_to_leave_at_a_report_makes_it_and_takes_no_step_more(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken: list[int] = []
        self.watch_steps(monkeypatch, taken.append)
        engine.on_trained(lambda trial_id, is_final: engine.request_preemption(trial_id, "node n is draining"))
        begun, _ = run_until_preempted(engine, make_spec())
        state = engine.snapshot("0000")
        engine.evict("0000")
        assert ([report.index for report in begun], taken) == ([1], [1, 2, 3])
        assert state is not None and (state.step, state.has_pending_report) == (3, False)
        assert state.metrics == begun[0].metrics
        # And one that owes its last report makes it, and ends.
        engine.on_trained(lambda trial_id, is_final: is_final and engine.request_preemption(trial_id, "late"))
        reports = run_trial(engine, make_spec(), state=state, num_reports=2)
        engine.evict("0000")
        assert [(report.index, report.is_final) for report in reports] == [(2, False), (3, True)]

    def test_asking_a_stranger_to_leave_does_nothing(self, engine: Engine) -> None:
        engine.request_preemption("4711", "node n is draining")
        engine.admit(make_spec())
        (report,) = engine.advance()
        engine.evict("0000")
        assert isinstance(report, Report)

    def test_a_diverging_trial_fails_alone_and_the_next_is_as_if_first(self, engine: Engine) -> None:
        alone = run_trial(engine, make_spec("0001"))
        engine.evict("0001")
        reports = run_trial(engine, make_spec("0002", learning_rate=1e30, warmup_ratio=0.0, max_grad_norm=0.0))
        assert reports[-1].failure is not None
        assert reports[-1].failure.cause == "diverged"
        engine.evict("0002")
        after = run_trial(engine, make_spec("0001"))
        engine.evict("0001")
        assert losses(after) == losses(alone)

    def test_a_bad_target_module_is_that_trials_failure(self, engine: Engine) -> None:
        reports = run_trial(engine, make_spec(lora={"target_modules": ["no_such_proj"]}))
        engine.evict("0000")
        assert reports[-1].failure is not None
        assert "no_such_proj" in reports[-1].failure.message

    def test_the_frozen_bytes_are_the_same_before_and_after(self, engine: Engine, bench: Bench) -> None:
        before = hash_weights(bench.base)
        run_trial(engine, make_spec())
        engine.evict("0000")
        assert hash_weights(bench.base) == before
        assert not any("lora" in name for name, _ in bench.base.model.named_parameters())

    def test_activation_checkpointing_changes_no_result(self, engine: Engine) -> None:
        plain = run_trial(engine, make_spec())
        engine.evict("0000")
        checkpointed = run_trial(engine, make_spec(gradient_checkpointing=True))
        engine.evict("0000")
        for (eval_a, train_a), (eval_b, train_b) in zip(losses(plain), losses(checkpointed), strict=True):
            assert eval_b == pytest.approx(eval_a, rel=1e-5)
            assert train_b == pytest.approx(train_a, rel=1e-5)

    def test_the_saved_adapter_has_the_reported_loss_in_plain_peft(
        self, engine: Engine, bench: Bench, tmp_path: Path
    ) -> None:
        reports = run_trial(engine, make_spec())
        engine.save_adapter("0000", tmp_path / "adapter")
        engine.evict("0000")
        fresh = load_nf4()
        model = PeftModel.from_pretrained(fresh.model, str(tmp_path / "adapter"))
        assert plain_validation_loss(model, bench.data) == pytest.approx(reports[-1].metrics["eval_loss"], abs=1e-4)

    def test_an_adapter_can_only_be_saved_at_a_report(self, engine: Engine, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="is not here"):
            engine.save_adapter("0000", tmp_path / "adapter")

    def test_training_losses_come_at_every_logging_step_and_at_each_report(self, engine: Engine) -> None:
        every = run_trial(engine, make_spec(logging_steps=1))
        engine.evict("0000")
        pairs = run_trial(engine, make_spec(logging_steps=2))
        engine.evict("0000")
        assert [[step for step, _ in report.train_losses] for report in every] == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
        assert [[step for step, _ in report.train_losses] for report in pairs] == [[2, 3], [4, 6], [8, 9]]
        by_step = {step: loss for report in every for step, loss in report.train_losses}
        for report in every:
            mean = sum(loss for _, loss in report.train_losses) / len(report.train_losses)
            assert report.metrics["train_loss"] == pytest.approx(mean, rel=1e-5)
        means = {step: loss for report in pairs for step, loss in report.train_losses}
        # A report ends a mean: 3 stands alone, and 4 after it too.
        assert means[2] == pytest.approx((by_step[1] + by_step[2]) / 2, rel=1e-5)
        assert means[6] == pytest.approx((by_step[5] + by_step[6]) / 2, rel=1e-5)
        assert (means[3], means[4]) == (by_step[3], by_step[4])

    def test_losses_equal_those_of_a_plain_torch_loop(self, engine: Engine, bench: Bench) -> None:
        spec = make_spec(lora={"lora_dropout": 0.0}, lr_scheduler_type="cosine", weight_decay=0.01)
        reports = run_trial(engine, spec)
        engine.evict("0000")
        expected = plain_training_losses(spec, bench.base, bench.data)
        per_report = NUM_STEPS // NUM_REPORTS
        for index, report in enumerate(reports):
            mean = sum(expected[index * per_report : (index + 1) * per_report]) / per_report
            assert report.metrics["train_loss"] == pytest.approx(mean, rel=1e-4)

    def test_facts_hold_what_really_ran(self, engine: Engine) -> None:
        reports = run_trial(engine, make_spec(lora={"r": 4, "alpha_ratio": 0.5, "target_modules": "attention-qv"}))
        engine.evict("0000")
        facts = reports[-1].facts
        # Two square projections of width 192 in each of 4 layers: r * (in + out) each.
        assert facts["trainable_parameters"] == 4 * 2 * 4 * (192 + 192)
        assert facts["lora"]["lora_alpha"] == 2.0
        assert facts["lora"]["target_modules"] == ["q_proj", "v_proj"]
        assert facts["quantization"]["method"] == "nf4"
        assert facts["training"]["bf16"] is False
        assert facts["training"]["fp16"] is False

    def test_rank_stabilized_lora_trains(self, engine: Engine) -> None:
        reports = run_trial(engine, make_spec(lora={"use_rslora": True}))
        engine.evict("0000")
        assert reports[-1].failure is None
        assert reports[-1].metrics["eval_loss"] < reports[0].metrics["eval_loss"]

    def test_scores_of_base_and_adapter_come_from_the_same_rows(
        self, engine: Engine, bench: Bench, tmp_path: Path
    ) -> None:
        reports = run_trial(engine, make_spec())
        engine.save_adapter("0000", tmp_path / "adapter")
        engine.evict("0000")
        rows = bench.data.validation
        progress = Told()
        scores = engine.score({"base": None, "0000": tmp_path / "adapter"}, rows, progress=progress)
        base, tuned = scores["base"], scores["0000"]
        assert tuned.loss == pytest.approx(reports[-1].metrics["eval_loss"], rel=1e-5)
        assert base.loss == pytest.approx(plain_validation_loss(bench.base.model, bench.data), rel=1e-5)
        assert base.num_tokens == tuned.num_tokens
        assert all("on validation" in what for what, _, _ in progress.parts)
        assert {what.split()[2] for what, _, _ in progress.parts} == {"base", "0000"}
        assert (
            sum(done for _, done, _ in progress.parts) == sum(total for _, _, total in progress.parts) == 2 * len(rows)
        )
