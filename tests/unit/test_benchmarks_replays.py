"""A sweep's trials again in one process: admitted as slots are free, stopped where the sweep stopped them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from benchmarks.bases import choose_base, load_choice
from benchmarks.quickstart import engines_of, format_seconds
from benchmarks.replays import make_spec, replay, replay_engine
from benchmarks.sweeps import OurSweep, Trial
from qlora_ray.config.loading import load_config
from qlora_ray.config.schema import SweepConfig
from qlora_ray.data import prepare_data
from qlora_ray.errors import RunError
from qlora_ray.runs.record_parts import PlanRecord
from qlora_ray.runs.typed_json import parse_record, to_json
from qlora_ray.training.engine import Failure, Report, TrainingData, TrialSpec
from qlora_ray.training.packed.engine import PackedEngine
from tests.unit.hardware_fixtures import TINY, cpu_node, plan


def make_trial(trial_id: str, *, num_reports: int, learning_rate: float = 2e-3) -> Trial:
    """A trial of a sweep without dropout."""
    lora = {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.0, "target_modules": ["q_proj"], "use_rslora": False}
    training = {"learning_rate": learning_rate, "lr_scheduler_type": "linear", "warmup_steps": 1, "seed": 7}
    return Trial(trial_id, num_reports, num_reports, lora, training)


@pytest.fixture
def config() -> SweepConfig:
    """Four steps of four rows, two reports."""
    settings = ["training.max_samples=16", "training.per_device_train_batch_size=4", "search.num_reports=2"]
    rows = ["data.max_train_rows=12", "data.max_validation_rows=4", "training.gradient_accumulation_steps=1"]
    return load_config(None, overrides=[*settings, *rows, "training.optim=adamw_torch"])


@dataclass
class CountingEngine:
    """Reports once per advance for the oldest trial that trains, and keeps a diary."""

    slots: int
    num_reports: int
    failing: str | None = None
    here: dict[str, int] = field(default_factory=dict)
    diary: list[str] = field(default_factory=list)

    def admit(self, spec: TrialSpec, state: Any = None) -> None:
        assert len(self.here) < self.slots
        self.here[spec.trial_id] = 0
        self.diary.append(f"admit {spec.trial_id}")

    def proceed(self, trial_id: str) -> None:
        self.diary.append(f"proceed {trial_id}")

    def evict(self, trial_id: str) -> None:
        del self.here[trial_id]
        self.diary.append(f"evict {trial_id}")

    def advance(self) -> list[Report]:
        name = next(iter(self.here))
        self.here[name] += 1
        failure = Failure("diverged", "loss is nan") if name == self.failing else None
        index = self.here[name]
        return [Report(name, index, index == self.num_reports, {"eval_loss": 1 / index}, failure=failure)]


def make_specs(config: SweepConfig, *names: str) -> list[TrialSpec]:
    """Trials of these names."""
    return [make_spec(make_trial(name, num_reports=2), config, num_train_rows=12) for name in names]


def test_a_trial_is_stopped_at_its_report_and_the_next_one_takes_its_slot(config: SweepConfig) -> None:
    engine: Any = CountingEngine(slots=1, num_reports=4)
    losses = replay_engine(engine, make_specs(config, "a", "b"), {"a": 2, "b": 4})
    assert losses == {"a": 0.5, "b": 0.25}
    assert engine.diary == ["admit a", "proceed a", "evict a", "admit b", *["proceed b"] * 3, "evict b"]


def test_a_trial_that_fails_where_the_sweeps_did_not_is_an_error(config: SweepConfig) -> None:
    engine: Any = CountingEngine(slots=2, num_reports=4, failing="a")
    with pytest.raises(RunError, match=r"trial a must train .*, got diverged: loss is nan"):
        replay_engine(engine, make_specs(config, "a", "b"), {"a": 2, "b": 2})


def test_a_trial_has_the_sweeps_settings_and_its_own(config: SweepConfig) -> None:
    spec = make_spec(make_trial("0003", num_reports=1, learning_rate=5e-4), config, num_train_rows=12)
    assert spec.training == config.training.model_copy(update={"learning_rate": 5e-4})
    assert spec.budget.report_steps == (2, 4)
    assert (spec.lora.r, spec.lora.resolved_alpha, spec.lora.target_modules) == (8, 16.0, ["q_proj"])


@pytest.mark.slow
def test_all_ways_end_at_the_same_validation_losses(config: SweepConfig) -> None:
    torch.set_num_threads(1)
    base = load_choice(choose_base(model="embedded", shape=None), precision="fp32", device="cpu")
    data = prepare_data(config.data, tokenizer=base.tokenizer, data_seed=config.training.data_seed)
    trials = [make_trial("0000", num_reports=1), make_trial("0001", num_reports=2, learning_rate=1e-3)]
    ours = replace(
        OurSweep(config, trials, 4, 1.0, 0.0, 1.0, 1.0, 0.0, None, 0, "0001", 0, {}),
        trials=[replace(trial, lora={**trial.lora, "target_modules": "all-linear"}) for trial in trials],
    )
    rows = TrainingData(data.train, data.validation)
    result = replay(
        ours, base, data, engines={"packed": lambda: PackedEngine(base, rows, slots=2, max_tokens_per_micro_batch=1024)}
    )
    losses = result["eval_losses"]
    assert losses["packed"] == pytest.approx(losses["in_turn"], rel=1e-4)
    assert losses["in_turn"]["0000"] != losses["in_turn"]["0001"]
    assert set(result["seconds"]) == {"packed", "in_turn"}


@pytest.mark.slow
def test_the_engines_of_a_replay_are_those_of_the_sweeps_plan(config: SweepConfig) -> None:
    base = load_choice(choose_base(model="embedded", shape=None), precision="fp32", device="cpu")
    data = prepare_data(config.data, tokenizer=base.tokenizer, data_seed=config.training.data_seed)
    planned = plan(cpu_node(), model=TINY, packing="packed", slots_per_device=3)
    placement = to_json(parse_record(PlanRecord, planned.to_dict()).placements[0])
    engines = engines_of(placement, base, TrainingData(data.train, data.validation))
    assert {name: make().slots for name, make in engines.items()} == {"packed": 3, "single": 1}


def test_seconds_are_said_in_a_line() -> None:
    assert format_seconds({"in_turn": 2.0, "packed": 1.25}) == "in turn 2.0 s, packed 1.2 s"
