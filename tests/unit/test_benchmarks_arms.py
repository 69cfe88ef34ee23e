"""The arms of the packing benchmark do equal work: the same losses, and a base as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.arms import ARMS, run_arm
from benchmarks.bare_loop import IGNORED, pad_batch
from benchmarks.bases import BaseChoice, choose_base, load_choice
from benchmarks.cases import Case, Workload, make_workload
from benchmarks.measuring import describe_case, measure_case, order_arms, place_case
from benchmarks.tables import format_cases
from qlora_ray.config.schema import Data, Model
from qlora_ray.data import TokenizedSplit, prepare_data
from qlora_ray.hardware import Placement
from qlora_ray.modeling.loading import LoadedBase, load_tokenizer
from tests.unit.hardware_fixtures import cpu_node

NODE = cpu_node(num_cpus=2, ram_gib=16)


@pytest.fixture(scope="module")
def choice() -> BaseChoice:
    return choose_base(model="embedded", shape=None)


@pytest.fixture(scope="module")
def base(choice: BaseChoice) -> LoadedBase:
    """The embedded base in NF4."""
    torch.set_num_threads(1)
    return load_choice(choice, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def workload() -> Workload:
    """Three trials of two steps, the dropouts of all of them off."""
    model = Model()
    data = prepare_data(Data(max_train_rows=24, max_validation_rows=4), tokenizer=load_tokenizer(model), data_seed=7)
    made = make_workload(Case(trials=3, tokens=128, steps=2), data.train)
    plain = [replace(spec, lora=spec.lora.model_copy(update={"lora_dropout": 0.0})) for spec in made.specs]
    return replace(made, specs=plain)


@pytest.fixture(scope="module")
def placement(workload: Workload, choice: BaseChoice) -> Placement:
    return place_case(workload, choice, NODE)


@pytest.mark.slow
def test_all_arms_train_every_trial_to_the_same_loss_and_leave_the_base_as_they_found_it(
    base: LoadedBase, workload: Workload, placement: Placement
) -> None:
    before = [(name, type(module)) for name, module in base.model.named_modules()]
    losses = {}
    for arm in ARMS:
        losses[arm] = run_arm(arm, base, workload, placement).losses
        assert [(name, type(module)) for name, module in base.model.named_modules()] == before, arm
    assert list(losses["in_turn"]) == [spec.trial_id for spec in workload.specs]
    assert len(set(losses["in_turn"].values())) == 3
    for arm in ARMS:
        assert losses[arm] == pytest.approx(losses["in_turn"], rel=1e-4), arm


def test_the_planner_places_all_trials_of_a_case_at_once(placement: Placement) -> None:
    assert placement.engine == "packed"
    assert placement.slots_per_device == 3
    assert placement.max_tokens_per_micro_batch is not None


@pytest.mark.slow
def test_a_measured_case_has_what_the_table_needs(base: LoadedBase, workload: Workload, placement: Placement) -> None:
    said: list[str] = []
    entry = measure_case(base, workload, placement, repetitions=2, single_repetitions=1, say=said.append)
    assert entry["name"] == "k3-t128"
    assert entry["trials"] == 3
    assert entry["tokens_per_trial"] == 128
    assert entry["packed_over_in_turn"] > 0
    assert len(entry["arms"]["packed"]["seconds"]) == 2
    assert len(entry["arms"]["single"]["seconds"]) == 1
    assert 0 <= entry["padding_share"] <= entry["arms"]["in_turn"]["padding_share"]
    assert entry["loss_gap"] < 1e-4
    assert said == []
    table = format_cases([entry])
    assert "k3-t128" in table
    assert "x as fast" in table


def test_a_case_in_which_an_arm_did_not_fit_says_so_and_compares_nothing(
    workload: Workload, placement: Placement
) -> None:
    skipped = {"packed": "out of memory: tried to allocate"}
    entry = describe_case(workload, placement, {"packed": [], "in_turn": [], "single": []}, skipped)
    assert entry["packed_over_in_turn"] is None
    assert entry["skipped"] == skipped
    assert "skipped" in format_cases([entry])


def test_arms_take_turns_at_being_first() -> None:
    assert order_arms(0, with_single=False) == ("packed", "in_turn")
    assert order_arms(1, with_single=True) == ("in_turn", "packed", "single")


def test_a_batch_is_padded_on_the_right_and_only_answers_have_labels() -> None:
    rows = TokenizedSplit.of("rows", [[5, 6, 7], [8]], [[0, 1, 1], [1]], [[5], []], ["", ""])
    batch = pad_batch(rows, [0, 1], pad_token_id=1)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
