"""Which figures stand for a bundle: the sweep's verdict or the trial's own evaluation, on which rows, from where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.exporting.card.figures import (
    CardFacts,
    RowsSource,
    describe_rows,
    detail_tables,
    find_source,
    is_worse,
    rows_are_the_sweeps,
    rows_source,
    rows_split,
    score_rows,
    verdict_sentences,
)
from qlora_ray.exporting.selection import Selection, select_trial
from qlora_ray.runs.score_records import EvaluationRecord, ScoreRecord
from qlora_ray.runs.typed_json import parse_record
from qlora_ray.scoring.comparison import Comparison
from tests.exporting_fixtures import write_sweep
from tests.sweep_folder import edited
from tests.sweep_records import make_comparison, make_evaluation, make_verdict


def facts_of(
    tmp_path: Path,
    *,
    trial: str = "best",
    evaluation: EvaluationRecord | None = None,
    verdict: str = "better",
) -> CardFacts:
    sweep = write_sweep(tmp_path / "s", verdict=verdict)
    return CardFacts("a name", select_trial(sweep, trial=trial), None, evaluation)


def evaluation_of(*comparisons: dict[str, Any], **changes: Any) -> EvaluationRecord:
    """An evaluation of base and adapter, whose rows of plain text have no metrics."""
    scores = [{"model": "base", "prompts": "0-shot", "loss": 1.0}]
    parts = {"scores": scores, "comparisons": list(comparisons), **changes}
    return parse_record(EvaluationRecord, make_evaluation(models=("base", "adapter"), **parts))


def with_sources(selection: Selection, sources: dict[str, str], **data: Any) -> Selection:
    """The selection of a sweep whose data is from elsewhere."""
    config = selection.config.model_copy(update={"data": selection.config.data.model_copy(update=data)})
    written = selection.manifest.config
    manifest = replace(
        selection.manifest,
        data=replace(selection.data, sources=sources),
        config={**written, "data": {**written["data"], **data}},
    )
    dataset = replace(selection.record.dataset, sources={"train": sources["train"]})
    record = replace(selection.record, dataset=dataset)
    return replace(selection, config=config, manifest=manifest, record=record)


def test_the_sweeps_verdict_comes_first_then_each_pair_then_each_note_once(tmp_path: Path) -> None:
    first = {**make_comparison("better", tuned="adapter"), "note": "3 were cut"}
    second = make_comparison("worse", prompts="3-shot")
    # A pair has a line for each measure, and the same note on each.
    facts = facts_of(tmp_path, evaluation=evaluation_of(first, first, second))
    verdict = make_verdict("better")
    deciding, (loss,) = verdict.deciding, verdict.others
    told = Comparison.from_dict(first).sentence()
    assert verdict_sentences(facts) == [
        f"**better** on the test rows: {deciding.sentence()}",
        f"{loss.verdict}: {loss.sentence()}",
        f"better (adapter against base, 0-shot): {told}",
        f"better (adapter against base, 0-shot): {told}",
        f"worse (merged against base, 3-shot): {Comparison.from_dict(second).sentence()}",
        "Note (adapter, 0-shot): 3 were cut",
    ]


def test_a_trial_that_did_not_win_has_no_verdict_and_no_scores(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, trial="0002")
    assert (verdict_sentences(facts), score_rows(facts), describe_rows(facts)) == ([], [], [])
    assert not rows_are_the_sweeps(facts) and not is_worse(facts)


def test_the_sweeps_scores_are_of_base_and_adapter_on_its_rows(tmp_path: Path) -> None:
    facts = facts_of(tmp_path)
    base, adapter = score_rows(facts)
    assert (base.model, base.prompts, base.loss) == ("base", "0-shot, test", 1.09)
    assert (adapter.model, adapter.loss) == ("adapter", 0.07)
    rows, _ = describe_rows(facts)
    assert rows.startswith("Rows: 104 of test, from `embedded/test.jsonl`")
    assert detail_tables(facts) == []


def test_an_evaluation_of_its_own_goes_before_the_sweeps_scores(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, evaluation=evaluation_of())
    assert score_rows(facts) == [ScoreRecord(model="base", prompts="0-shot", loss=1.0)]
    rows, *models = describe_rows(facts)
    assert rows.startswith("Rows: 20 of test") and "from `embedded/test.jsonl`" in rows
    assert models == ["base: base as it was trained.", "adapter: adapter as it was trained."]
    only_prompts = replace(facts, evaluation=evaluation_of(rows={"split": None}))
    assert describe_rows(only_prompts) == models
    assert rows_split(only_prompts) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"fingerprint": "other"}, False),
        # The files may have moved, which the fingerprint tells, and `evaluate` has compared what they hold.
        ({"fingerprint": "other", "kind": "sweep"}, True),
        ({"fingerprint": "other", "kind": "sweep", "notes": ["test is not what the sweep had: so"]}, False),
        ({"fingerprint": "other", "kind": "sweep", "notes": ["validation is not what the sweep had: so"]}, True),
        ({"fingerprint": "other", "kind": "sweep", "split": None}, False),
    ],
)
def test_rows_are_the_sweeps_by_fingerprint_or_by_what_evaluate_found(
    tmp_path: Path, changes: dict[str, Any], expected: bool
) -> None:
    changes = dict(changes)
    kind, notes = changes.pop("kind", "bundle"), changes.pop("notes", [])
    evaluation = evaluation_of(target={"kind": kind}, notes=notes)
    facts = facts_of(tmp_path, evaluation=replace(evaluation, rows=replace(evaluation.rows, **changes)))
    assert rows_are_the_sweeps(facts) is expected
    assert (rows_source(facts) is not None) is expected


@pytest.mark.parametrize(
    ("word", "other_base", "verdict", "expected"),
    [
        ("better", "base", "better", False),
        ("worse", "base", "better", True),
        ("better", "base", "worse", True),
        # The merged model may fall behind its adapter and still be better than the base.
        ("worse", "adapter", "better", False),
    ],
)
def test_worse_is_worse_than_the_base_by_any_measure(
    tmp_path: Path, word: str, other_base: str, verdict: str, expected: bool
) -> None:
    evaluation = evaluation_of(make_comparison(word, base=other_base))
    assert is_worse(facts_of(tmp_path, evaluation=evaluation, verdict=verdict)) is expected


def test_rows_of_the_hub_are_named_by_id_and_split_and_files_without_their_folder(tmp_path: Path) -> None:
    selection = facts_of(tmp_path).selection
    hub = {"train": "openai/gsm8k:main train", "test": "openai/gsm8k:main test"}
    of_hub = with_sources(selection, hub, train="openai/gsm8k:main", test="test")
    assert find_source(of_hub, "test") == RowsSource("openai/gsm8k:main test", "openai/gsm8k", "gsm8k")
    files = {"train": "/home/me/rows.jsonl", "validation": "0.1 of /home/me/rows.jsonl, by data_seed 7 (ours)"}
    of_files = with_sources(selection, files, train="/home/me/rows.jsonl")
    train = find_source(of_files, "train")
    assert train == RowsSource("rows.jsonl", "rows", "rows")
    assert find_source(of_files, "validation") == replace(train, label="rows.jsonl, held out")
    assert find_source(of_files, "test") is None


def test_how_answers_were_drawn_stands_with_the_scores(tmp_path: Path) -> None:
    drawn = {"temperature": 0.7, "top_p": 0.9, "seed": 3}
    own = facts_of(tmp_path, evaluation=evaluation_of(settings={"evaluate": {"sampling": drawn}}))
    with edited(own.selection.paths.best / "scores.json") as scores:
        for key in ("base", "winner"):
            scores[key]["sampling"] = drawn
    of_sweep = replace(own, selection=select_trial(own.selection.paths.root), evaluation=None)
    for facts in (own, of_sweep):
        assert "temperature 0.7, top_p 0.9, seed 3" in describe_rows(facts)[-1]
