"""Trials in one pack: each trains as if it were alone. The bounds are those of the table "How right is right"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import EngineEvent, Report, TrainingData, TrialSpec
from qlora_ray.training.packed.engine import PackedEngine
from qlora_ray.training.single.engine import SingleEngine
from tests.contracts.bench import BATCH, Bench, bench, hash_weights, load_nf4, losses, make_spec, run_trial
from tests.contracts.head_contract import head, head_metrics, label, with_heads
from tests.contracts.packs import (
    MIXED_RANKS,
    MIXED_SPECS,
    NUM_REPORTS,
    OTHER_BLOCKS,
    OTHER_ENGINE,
    SAME_RANK_SPECS,
    SAME_RANKS,
    alone,
    assert_close,
    engine,
    make_engine,
    run_pack,
)

__all__ = ["bench", "engine"]


def test_equal_ranks_train_as_if_alone_whatever_their_rates_dropouts_and_batch_sizes(engine: PackedEngine) -> None:
    packed = run_pack(engine, SAME_RANK_SPECS)
    for spec in SAME_RANK_SPECS:
        assert_close(losses(packed[spec.trial_id]), alone(engine, spec), rel=SAME_RANKS)


def test_mixed_ranks_and_target_modules_train_as_if_alone(engine: PackedEngine) -> None:
    packed = run_pack(engine, MIXED_SPECS)
    for spec in MIXED_SPECS:
        assert_close(losses(packed[spec.trial_id]), alone(engine, spec), rel=MIXED_RANKS)


def test_padding_stays_exactly_zero(engine: PackedEngine) -> None:
    for spec in MIXED_SPECS:
        engine.admit(spec)
    engine.advance()
    for spec in MIXED_SPECS:
        trial = engine._roster.find(spec.trial_id).trial
        for layer in trial.blueprint.layers:
            a_RD, b_OR = trial.stack.cut(trial.parameter.detach(), layer.number)
            assert torch.count_nonzero(a_RD[spec.lora.r :]) == 0
            assert torch.count_nonzero(b_OR[:, spec.lora.r :]) == 0
            assert torch.count_nonzero(b_OR[:, : spec.lora.r]) > 0
        engine.evict(spec.trial_id)


def test_a_pack_trains_as_sfttrainer_does(engine: PackedEngine, bench: Bench) -> None:
    every_step = {"max_samples": 20 * BATCH, "warmup_ratio": 0.2}
    specs = [
        make_spec(
            f"{number:04d}",
            lora={"r": r, "lora_dropout": 0.0},
            learning_rate=rate,
            lr_scheduler_type=schedule,
            num_reports=20,
            **every_step,
        )
        for number, (r, rate, schedule) in enumerate([(8, 2e-3, "cosine"), (16, 5e-4, "constant")])
    ]
    packed = run_pack(engine, specs)
    single = SingleEngine(bench.base, TrainingData(bench.data.train, bench.data.validation), max_micro_batch=8)
    for spec in specs:
        expected = run_trial(single, spec, num_reports=20)
        single.evict(spec.trial_id)
        got = packed[spec.trial_id]
        assert len(got) == len(expected) == 20
        for one, other in zip(losses(got), losses(expected), strict=True):
            assert one == pytest.approx(other, rel=OTHER_ENGINE)
        # TRL reports the rate of the next step as well.
        assert got[7].metrics["learning_rate"] == pytest.approx(expected[7].metrics["learning_rate"])


def test_a_neighbour_that_diverges_changes_nothing(engine: PackedEngine) -> None:
    healthy = make_spec("0001")
    diverging = make_spec("0000", learning_rate=1e30, warmup_ratio=0.0, max_grad_norm=0.0)
    packed = run_pack(engine, [diverging, healthy])
    failure = packed["0000"][-1].failure
    assert failure is not None and failure.cause == "diverged"
    # What ran is told, though it never reported.
    assert packed["0000"][-1].facts["training"]["learning_rate"] == 1e30
    # To rounding: which sums a processor takes first depends on how many rows a product has.
    assert_close(losses(packed["0001"]), losses(run_pack(engine, [healthy])["0001"]), rel=SAME_RANKS)


def test_a_neighbours_nan_weights_change_nothing(engine: PackedEngine) -> None:
    specs = [make_spec("0000"), make_spec("0001", seed=3)]
    clean = run_pack(engine, specs)

    def poison(report: EngineEvent) -> None:
        if report.trial_id == "0001" and report.index == 1:
            trial = engine._roster.find("0001").trial
            trial.bind()
            trial.parameter.data.fill_(float("nan"))

    poisoned = run_pack(engine, specs, on_event=poison)
    failure = poisoned["0001"][-1].failure
    assert failure is not None and failure.cause == "diverged"
    assert_close(losses(poisoned["0000"]), losses(clean["0000"]), rel=SAME_RANKS)


def test_neighbours_that_come_and_go_change_nothing(engine: PackedEngine) -> None:
    spec = make_spec("0000")
    expected = alone(engine, spec)

    def come_and_go(report: Report) -> None:
        if report.trial_id != "0000":
            return
        if report.index == 1:
            engine.admit(make_spec("0001", seed=9, lora={"r": 16}))
            engine.evict("0002")

    engine.admit(make_spec("0002", data_seed=4))
    engine.admit(spec)
    mine: list[Report] = []
    while len(mine) < NUM_REPORTS:
        for report in engine.advance():
            if report.trial_id == "0000":
                mine.append(report)
                come_and_go(report)
            if not report.is_final:
                engine.proceed(report.trial_id)
    for trial_id in ("0000", "0001", "0002"):
        engine.evict(trial_id)
    assert_close(losses(mine), expected, rel=SAME_RANKS)


def test_a_trial_goes_on_in_another_slot_of_another_pack(engine: PackedEngine, bench: Bench, tmp_path: Path) -> None:
    spec = make_spec("0000")
    whole = alone(engine, spec)
    engine.admit(make_spec("0001", seed=2))
    engine.admit(spec)
    first = engine.advance()
    assert {report.trial_id for report in first} == {"0000", "0001"}
    state = engine.snapshot("0000")
    assert state is not None
    state.save(tmp_path / "state")
    other = make_engine(load_nf4(), bench.data)
    for number in (2, 3):
        other.admit(make_spec(f"{number:04d}", seed=number, lora={"r": 4 * number}))
    other.admit(spec, TrialState.load(tmp_path / "state"))
    rest: list[Report] = []
    while len(rest) < NUM_REPORTS - 1:
        for report in other.advance():
            if report.trial_id == "0000":
                rest.append(report)
            other.proceed(report.trial_id)
    mine = [report for report in first if report.trial_id == "0000"]
    for one in (engine, other):
        for number in range(4):
            one.evict(f"{number:04d}")
    assert_close(losses(mine + rest), whole, rel=SAME_RANKS)


@pytest.mark.parametrize(("optim", "rel"), [("adamw_torch", OTHER_ENGINE), ("adamw_8bit", OTHER_BLOCKS)])
def test_a_trial_moves_between_the_engines(
    engine: PackedEngine, bench: Bench, tmp_path: Path, optim: str, rel: float
) -> None:
    # Rank 12: the pack pads it to 16, which must not show in a state.
    spec = make_spec(lora={"r": 12, "lora_dropout": 0.0}, optim=optim)
    single = SingleEngine(bench.base, TrainingData(bench.data.train, bench.data.validation), max_micro_batch=8)
    for start, goal in ((single, engine), (engine, single)):
        whole = run_trial(goal, spec)
        goal.evict("0000")
        run_trial(start, spec, num_reports=1)
        state = start.snapshot("0000")
        assert state is not None
        state.save(tmp_path / "state")
        start.evict("0000")
        rest = run_trial(goal, spec, state=TrialState.load(tmp_path / "state"))
        goal.evict("0000")
        for one, other in zip(losses(rest), losses(whole)[1:], strict=True):
            assert one == pytest.approx(other, rel=rel)


@pytest.mark.parametrize("max_tokens", [64, 300])
def test_how_the_step_is_cut_changes_no_result(bench: Bench, engine: PackedEngine, max_tokens: int) -> None:
    spec = make_spec("0000")
    cut = make_engine(bench.base, bench.data, max_tokens_per_micro_batch=max_tokens)
    assert_close(alone(cut, spec), alone(engine, spec), rel=MIXED_RANKS)


def test_a_base_held_dequantized_gives_the_same_numbers(bench: Bench, engine: PackedEngine) -> None:
    before = hash_weights(bench.base)
    held = make_engine(bench.base, bench.data, hold_dequantized=True)
    packed = run_pack(held, SAME_RANK_SPECS)
    for spec in SAME_RANK_SPECS[:2]:
        assert_close(losses(packed[spec.trial_id]), alone(engine, spec), rel=MIXED_RANKS)
    assert hash_weights(bench.base) == before


def test_checkpointing_changes_no_gradient_of_a_pack_with_dropout(engine: PackedEngine) -> None:
    plain = run_pack(engine, SAME_RANK_SPECS)
    specs = [
        TrialSpec(
            spec.trial_id, spec.lora, spec.training.model_copy(update={"gradient_checkpointing": True}), spec.budget
        )
        for spec in SAME_RANK_SPECS
    ]
    checkpointed = run_pack(engine, specs)
    for spec in specs:
        assert_close(losses(checkpointed[spec.trial_id]), losses(plain[spec.trial_id]), rel=SAME_RANKS)


@pytest.mark.parametrize(
    "lora", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}]
)
def test_what_cannot_be_packed_is_refused_by_name(engine: PackedEngine, lora: dict[str, Any]) -> None:
    packed = run_pack(engine, [make_spec("0000", lora=lora), make_spec("0001")])
    failure = packed["0000"][-1].failure
    assert failure is not None and failure.cause == "error"
    assert next(iter(lora)) in failure.message
    assert packed["0001"][-1].failure is None


def test_trials_with_other_heads_train_as_if_alone_and_a_diverging_head_disturbs_nobody(bench: Bench) -> None:
    labelled = label(bench.data)
    specs = [
        make_spec("0000", lora={"r": 4}),
        with_heads(make_spec("0001", lora={"r": 12}), head("length", weight=0.3)),
        with_heads(make_spec("0002"), head("aggregate", weight=2.0, pooling="mean"), head("length", pooling="last")),
        with_heads(make_spec("0003", max_grad_norm=0.0), head("length", weight=3e38)),
    ]
    engine = make_engine(bench.base, labelled)
    packed = run_pack(engine, specs)
    failure = packed["0003"][-1].failure
    assert failure is not None and failure.cause == "diverged"
    for spec in specs[:-1]:
        reports = run_trial(engine, spec)
        engine.evict(spec.trial_id)
        assert_close(losses(packed[spec.trial_id]), losses(reports), rel=MIXED_RANKS)
        for one, other in zip(packed[spec.trial_id], reports, strict=True):
            assert head_metrics(one.metrics) == pytest.approx(head_metrics(other.metrics), rel=MIXED_RANKS)
    assert head_metrics(packed["0000"][-1].metrics) == {}


def test_heads_go_on_in_the_other_engine(bench: Bench, tmp_path: Path) -> None:
    labelled = label(bench.data)
    spec = with_heads(make_spec(lora={"lora_dropout": 0.0}), head("length"), head("aggregate", pooling="last"))
    engines = [
        make_engine(bench.base, labelled),
        SingleEngine(bench.base, TrainingData(labelled.train, labelled.validation), max_micro_batch=8),
    ]
    for first, second in (engines, engines[::-1]):
        whole = run_trial(first, spec)
        first.evict("0000")
        run_trial(first, spec, num_reports=1)
        state = first.snapshot("0000")
        assert state is not None
        state.save(tmp_path / "state")
        first.evict("0000")
        rest = run_trial(second, spec, state=TrialState.load(tmp_path / "state"))
        second.evict("0000")
        for one, other in zip(rest, whole[1:], strict=True):
            assert losses([one])[0] == pytest.approx(losses([other])[0], rel=OTHER_ENGINE)
            assert head_metrics(one.metrics) == pytest.approx(head_metrics(other.metrics), rel=OTHER_ENGINE)
        assert rest[-1].facts["trainable_parameters"] == whole[-1].facts["trainable_parameters"]
