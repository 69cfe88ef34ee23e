"""The model card: metadata that the hub reads, and text that says what was measured and no more."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from qlora_ray.exporting.card.card import make_card
from qlora_ray.exporting.card.figures import CardFacts
from qlora_ray.exporting.selection import select_trial
from qlora_ray.runs.score_records import EvaluationRecord
from qlora_ray.runs.typed_json import parse_record
from qlora_ray.scoring.comparison import Comparison
from tests.exporting_fixtures import write_sweep
from tests.sweep_folder import edited
from tests.sweep_records import MERGE_REPORT, make_evaluation, make_verdict

NAME = "embedded-classicmodels_SFT_LoRa4_QLORA_w4_headfp32"


def facts_of(sweep, *, trial="best", merge=None, evaluation=None):
    record = parse_record(EvaluationRecord, evaluation) if evaluation else None
    return CardFacts(NAME, select_trial(sweep, trial=trial), merge, record)


def card_of(sweep, tmp_path, **settings):
    """The card as it is read back from a file."""
    path = tmp_path / "README.md"
    path.write_text(str(make_card(facts_of(sweep, **settings))))
    return ModelCard.load(path)


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "s")


def test_the_metadata_is_read_back_as_it_was_meant(sweep, tmp_path):
    data = card_of(sweep, tmp_path).data
    assert data.library_name == "peft" and data.pipeline_tag == "text-generation"
    assert {"lora", "qlora", "nf4"} <= set(data.tags)
    # Neither is a name on the hub, where a name that is none is an error.
    assert data.base_model is None and data.datasets is None
    assert data.license is None
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"loss": 0.07, "exact_match": 0.75}


def test_a_base_and_data_of_the_hub_are_named_in_it(sweep, tmp_path):
    with edited(sweep / "trials" / "0001" / "record.json") as record:
        record["base"] = {"name": "Qwen/Qwen3-0.6B", "revision": "main", "hash": "hub:Qwen/Qwen3-0.6B@main"}
        record["dataset"]["sources"]["train"] = "openai/gsm8k:main train"

    with edited(sweep / "manifest.json") as manifest:
        manifest["config"]["model"]["name"] = "Qwen/Qwen3-0.6B"
        manifest["config"]["model"]["revision"] = "main"
        manifest["config"]["data"]["train"] = "openai/gsm8k:main"
        manifest["config"]["data"]["test"] = "test"
        manifest["data"]["sources"] = {"train": "openai/gsm8k:main train", "test": "openai/gsm8k:main test"}
    card = card_of(sweep, tmp_path)
    assert "of test, from `openai/gsm8k:main test`" in card.text
    assert {(one.dataset_type, one.dataset_split) for one in card.data.eval_results} == {("openai/gsm8k", "test")}
    assert card.data.base_model == "Qwen/Qwen3-0.6B" and card.data.datasets == ["openai/gsm8k"]
    assert 'from_pretrained("Qwen/Qwen3-0.6B", dtype=torch.float32, revision="main", quantization_config=' in card.text


@pytest.mark.parametrize("word", ["better", "no different", "worse"])
def test_the_verdict_is_told_whatever_it_is(tmp_path, word):
    text = card_of(write_sweep(tmp_path / "s", verdict=word), tmp_path).text
    deciding = make_verdict(word).deciding
    assert f"- **{word}** on the test rows: {deciding.sentence()}" in text
    assert "95 % interval" in text and "McNemar" in text
    assert ("It is worse than its base" in text) == (word == "worse")


def test_a_trial_that_was_never_compared_says_so(sweep, tmp_path):
    text = card_of(sweep, tmp_path, trial="2").text
    assert "not compared with its base" in text and "is not known" in text
    assert "trial 0002, which is not the winner," in text and "## Scores" not in text


def test_an_older_sweep_without_a_verdict_still_has_its_scores(sweep, tmp_path):
    with edited(sweep / "best" / "scores.json") as scores:
        del scores["verdict"]
        scores["beats_base"] = True
    text = card_of(sweep, tmp_path).text
    assert "not compared with its base" in text
    assert "| adapter | 0-shot, validation | 0.07 | 104 | 0.75 |" in text


def test_its_own_evaluation_is_told_with_every_pair(sweep, tmp_path):
    evaluation = make_evaluation("worse")
    card = card_of(sweep, tmp_path, evaluation=evaluation)
    told = Comparison.from_dict(evaluation["comparisons"][0]).sentence()
    assert f"- worse (merged against base, 3-shot): {told}" in card.text
    assert "It is worse than its base" in card.text
    assert "| merged | 3-shot | 0.5 | 20 | 1 |" in card.text
    assert [result.dataset_name for result in card.data.eval_results] == ["classicmodels (3-shot, merged)"] * 2


def test_the_scores_say_which_rows_they_are_over_and_how_each_model_was_loaded(sweep, tmp_path):
    card = card_of(sweep, tmp_path, evaluation=make_evaluation())
    rows, _, table = card.text.partition("| model | prompts |")
    assert "- Rows: 20 of test" in rows and "from `embedded/test.jsonl`" in rows
    assert "- base: base as it was trained.\n- merged: merged as it was trained." in rows
    assert "rows like those it was trained on" in table
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}


def test_rows_that_are_not_the_sweeps_are_not_said_to_be_like_them(sweep, tmp_path):
    evaluation = make_evaluation()
    evaluation["rows"]["fingerprint"] = "0123456789abcdef"
    card = card_of(sweep, tmp_path, evaluation=evaluation)
    assert "not the rows of the sweep" in card.text and "rows like those" not in card.text
    assert {result.dataset_name for result in card.data.eval_results} == {"rows 0123456789ab (3-shot, merged)"}
    assert {result.dataset_type for result in card.data.eval_results} == {"rows-0123456789ab"}


def test_a_merge_is_told_in_figures_and_only_where_there_is_one(sweep, tmp_path):
    text = card_of(sweep, tmp_path, merge=MERGE_REPORT).text
    assert "dequant *" in text and "1.00e-03" in text and "Kept: dequant." in text
    assert 'AutoModelForCausalLM.from_pretrained("merged", dtype="auto")' in text
    assert "merged" not in card_of(sweep, tmp_path).text.lower()


def test_no_path_of_this_machine_is_in_it(tmp_path):
    (tmp_path / "secret-place").mkdir()
    rows = tmp_path / "secret-place" / "rows.jsonl"
    rows.write_text("{}")
    sweep = write_sweep(tmp_path / "secret-place" / "s", data={"train": str(rows)})
    text = str(make_card(facts_of(sweep)))
    assert "secret-place" not in text
    assert "`rows.jsonl`" in text


def test_only_a_quantized_base_has_the_tag_qlora(sweep, tmp_path):
    with edited(sweep / "trials" / "0001" / "record.json") as record:
        record["ran"]["quantization"] |= {"method": "none", "bits": 16, "compute_dtype": "bf16"}
    card = card_of(sweep, tmp_path)
    assert "qlora" not in card.data.tags and "dtype=torch.bfloat16" in card.text


def test_cut_answers_and_further_figures_stand_on_the_card(sweep, tmp_path):
    evaluation = make_evaluation()
    evaluation["scores"][1]["details"] = {"numeric_match": {"answered": 0.9, "r_squared": -4.3231}}
    evaluation["comparisons"][0]["note"] = "15 of 20 answers were cut"
    text = card_of(sweep, tmp_path, evaluation=evaluation).text
    assert "- Note (merged, 3-shot): 15 of 20 answers were cut\n" in text
    assert "| numeric_match | prompts | answered | r_squared |\n| --- | --- | --- | --- |\n| merged | 3-shot |" in text
    assert "| 0.900 | -4.323 |" in text and "`answered` is" in text
    plain = card_of(sweep, tmp_path, evaluation=make_evaluation()).text
    assert "numeric_match" not in plain and "Note (" not in plain

    with edited(sweep / "best" / "scores.json") as scores:
        scores["winner"]["details"] = {"numeric_match": {"answered": 1.0}}
    assert "| adapter | 0-shot, test | 1.000 |" in card_of(sweep, tmp_path).text
