"""What the packing benchmark measures: cases, rows, trials, and the command line that asks for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.bases import SHAPES, choose_base
from benchmarks.cases import NUM_WARMUP_STEPS, Case, choose_steps, fit_rows, make_random_rows, make_workload
from benchmarks.packing import list_cases, make_parser
from qlora_ray.data import TokenizedSplit
from qlora_ray.errors import ConfigError
from qlora_ray.training.budget import sample_order


def make_rows(lengths: list[int]) -> TokenizedSplit:
    """Rows of these lengths whose second half is trained."""
    ids = [[1 + number % 7 for number in range(length)] for length in lengths]
    masks = [[0] * (length // 2) + [1] * (length - length // 2) for length in lengths]
    return TokenizedSplit.of("rows", ids, masks, [row[: len(row) // 2] for row in ids], [""] * len(ids))


ROWS = make_rows([30, 35, 60, 62, 64, 66, 68, 127])


@pytest.mark.parametrize(
    ("tokens", "num_rows", "batch"),
    [(512, 8, 8), (128, 8, 2), (32, 2, 1)],  # 32: the rows of about that length stand for fewer than a mean row has
)
def test_a_few_rows_make_the_tokens(tokens: int, num_rows: int, batch: int) -> None:
    rows, found = fit_rows(ROWS, tokens=tokens)
    assert (len(rows), found) == (num_rows, batch)
    assert tokens > 32 or [len(ids) for ids in rows.input_ids] == [30, 35]


def test_tokens_that_no_row_can_make_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--tokens: .* about 9 tokens, got rows of 64 tokens"):
        fit_rows(ROWS, tokens=9)


def test_a_workload_counts_the_tokens_and_the_padding_of_its_timed_steps() -> None:
    workload = make_workload(Case(trials=3, tokens=128, steps=4), ROWS)
    spec = workload.specs[0]
    order = sample_order(num_rows=8, num_samples=spec.budget.num_samples, data_seed=spec.training.data_seed)
    lengths = [len(ROWS.input_ids[row]) for row in order][NUM_WARMUP_STEPS * 2 :]
    padded = sum(2 * max(lengths[at : at + 2]) for at in range(0, 8, 2))
    assert workload.tokens_per_trial == sum(lengths) / 4
    assert workload.batch_padding_share == pytest.approx(1 - sum(lengths) / padded)
    assert workload.num_tokens == 3 * sum(lengths)
    assert len(workload.validation) == 1


def test_trials_differ_as_those_of_a_sweep_do_but_see_the_same_rows_for_as_many_steps() -> None:
    specs = make_workload(Case(trials=8, tokens=128, steps=4), ROWS).specs
    assert {spec.lora.r for spec in specs} == {8, 16}
    assert {spec.lora.lora_dropout for spec in specs} == {0.0, 0.05, 0.1}
    assert len({(spec.lora.r, spec.lora.alpha_ratio) for spec in specs}) == 4
    assert len({spec.training.learning_rate for spec in specs}) == 8
    assert len({(spec.training.data_seed, spec.budget) for spec in specs}) == 1
    assert specs[0].budget.report_steps == (1, 5)
    equal = make_workload(Case(trials=4, tokens=128, steps=4, equal=True), ROWS).specs
    assert len({spec.trial_id for spec in equal}) == 4
    assert all(replace(spec, trial_id="0000") == equal[0] for spec in equal)


def test_the_order_of_rows_is_one_whose_timed_steps_have_about_the_tokens_that_the_case_names() -> None:
    workload = make_workload(Case(trials=1, tokens=128, steps=2), ROWS)
    assert workload.tokens_per_trial == pytest.approx(128, abs=6)


def test_random_rows_are_the_same_each_time_and_vary_in_length() -> None:
    rows = make_random_rows(tokens=1024, vocab_size=50)
    assert rows == make_random_rows(tokens=1024, vocab_size=50)
    lengths = [len(ids) for ids in rows.input_ids]
    assert 192 <= min(lengths) < max(lengths) <= 320
    assert max(max(ids) for ids in rows.input_ids) < 50
    assert fit_rows(rows, tokens=1024)[1] == 4


def test_small_cases_take_more_steps_than_large_ones_on_a_cpu() -> None:
    steps = [choose_steps(trials=8, tokens=tokens, on_cpu=True) for tokens in (32, 128, 512)]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] >= 2


SIX = ["k8-t32", "k8-t128", "k8-t512", "k1-t32", "k1-t128", "k1-t512"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--quick", SIX),
        ("", ["k8-t128-equal"]),
        ("--cases k4-t256 --trials 1,4 --tokens 256", ["k4-t256"]),
    ],
)
def test_the_command_measures_the_six_cases_of_the_table_or_those_chosen_by_name(
    options: str, names: list[str]
) -> None:
    cases = list_cases(make_parser().parse_args(options.split()), on_cpu=True)
    assert [case.name for case in cases if options or case.equal] == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cases", "k9-t9"], "--cases must name one of k8-t32, .*, got 'k9-t9'"),
        (["--trials", "0"], "--trials: numbers must be positive, got 0"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--repetitions", "0"], "--repetitions must be at least 1, got 0"),
    ],
)
def test_a_command_line_that_asks_for_nothing_measurable_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list_cases(make_parser().parse_args(options), on_cpu=True)


@pytest.mark.parametrize(("shape", "billions"), [("qwen2-0.5b", 0.494), ("qwen2-1.5b", 1.544), ("llama-8b", 8.030)])
def test_a_named_shape_has_the_parameters_that_its_model_card_says(shape: str, billions: float) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    choice = choose_base(model="embedded", shape=shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(choice.config)
    assert model.num_parameters() / 1e9 == pytest.approx(billions, abs=0.001)
    assert choice.shape().vocab_size == SHAPES[shape]["vocab_size"]


def test_a_base_that_is_unknown_or_unreadable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--shape must be one of qwen2-0\.5b, .*, got 'gpt5'"):
        choose_base(model="embedded", shape="gpt5")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(ConfigError, match=r"--model: .*config\.json must be a config\.json"):
        choose_base(model=str(path), shape=None)
