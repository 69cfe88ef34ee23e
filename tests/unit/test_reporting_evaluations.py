"""Evaluations and merges in the report, from the files that evaluate and export write."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

from qlora_ray.pages.blocks import Bullets, Drawing, Folded, Section, Table, Words
from qlora_ray.reporting.evaluations import tell_evaluation, tell_merges
from qlora_ray.reporting.facts import table_of
from qlora_ray.reporting.story import Story
from qlora_ray.reporting.verdicts import tell_verdict
from qlora_ray.runs.score_records import EvaluationRecord, MergeRecord
from qlora_ray.runs.typed_json import parse_record
from qlora_ray.scoring.comparison import compare_rows
from tests.sweep_records import MERGE_REPORT

B = TypeVar("B")
ROWS = {"base": [0.0] * 8 + [1.0] * 2, "adapter": [1.0] * 9 + [0.0], "merged": [1.0] * 9 + [0.0]}


def tell(usual: Story, **changes: Any) -> Section:
    """The section of a story whose evaluation has these parts."""
    section = tell_evaluation(replace(usual, evaluation=parse_record(EvaluationRecord, {**evaluation(), **changes})))
    assert section is not None
    return section


def compare(name: str, base: list[float], tuned: list[float], *, higher_is_better: bool = False) -> dict[str, Any]:
    """A comparison of base and adapter as evaluation.json has it."""
    figures = compare_rows(name, base, tuned, higher_is_better=higher_is_better).to_dict()
    return {"prompts": "0-shot", "base_model": "base", "tuned_model": "adapter", **figures}


def evaluation() -> dict[str, Any]:
    scores = [
        {
            "model": model,
            "prompts": "0-shot",
            "loss": 1.25,
            "perplexity": 3.4903,
            "num_rows": 208,
            "num_answers": 10,
            "metrics": {"exact_match": sum(rows) / 10},
        }
        for model, rows in ROWS.items()
    ]
    comparisons = [
        {
            "prompts": "0-shot",
            "base_model": base,
            "tuned_model": tuned,
            **compare_rows("exact_match", ROWS[base], ROWS[tuned], higher_is_better=True).to_dict(),
        }
        for base, tuned in (("base", "adapter"), ("adapter", "merged"))
    ]
    return {
        "target": {"trial": "0003"},
        "rows": {"split": "test", "num_rows": 208, "reason": "test: held out"},
        "models": {"base": "nf4"},
        "scores": scores,
        "comparisons": comparisons,
    }


def of_kind(section: Section, kind: type[B]) -> list[B]:
    return [block for block in section.blocks if isinstance(block, kind)]


def test_scores_of_all_models_stand_in_one_table(usual: Story) -> None:
    section = tell(usual)
    table = of_kind(section, Table)[0]
    assert table.header == ("model", "prompts", "loss", "perplexity", "exact_match", "rows", "answered")
    assert table.rows[1] == ("adapter", "0-shot", "1.2500", "3.490", "0.900", "208", "10")
    rows = of_kind(section, Words)[0].text
    assert "trial 0003" in rows and "208 test rows" in rows


def test_each_pair_of_models_is_compared_by_its_names(usual: Story) -> None:
    section = tell(usual)
    words = [words.text for words in of_kind(section, Words)]
    assert words[1:] == ["adapter against base, 0-shot:", "merged against adapter, 0-shot:"]
    assert of_kind(section, Table)[1].rows[0][:4] == ("exact_match", "0.200", "0.900", "+0.7")
    assert [drawing.name for drawing in of_kind(section, Drawing)] == ["evaluation0", "evaluation1"]


def test_an_evaluation_with_unknown_parts_is_still_shown(usual: Story) -> None:
    section = tell(usual, scores=[{"model": "base"}, 3], comparisons=[{}])
    assert of_kind(section, Table)[0].rows[0] == ("base", "none", "-", "-", "-", "-")


def test_no_evaluation_and_no_merge_are_no_sections(usual: Story) -> None:
    assert tell_evaluation(usual) is None and tell_merges(usual) is None


def test_a_merge_is_told_by_its_measured_models(usual: Story) -> None:
    models = [MERGE_REPORT.models[0], replace(MERGE_REPORT.models[2], changed_share=0.75, num_bytes=4 * 1024**2)]
    report = replace(MERGE_REPORT, models=models).to_dict()
    section = tell_merges(replace(usual, merges={"bundle/merged": parse_record(MergeRecord, report)}))
    assert section is not None
    assert of_kind(section, Words)[0].text.startswith("bundle/merged: kept dequant")
    (table,) = of_kind(section, Table)
    assert table.marked == 1
    assert table.rows[1] == ("dequant", "bf16", "0.0801", "+0.0001", "0.001", "100.0 %", "-", "75.0 %", "4 MiB")
    assert Bullets(("A note.",)) in section.blocks
    assert isinstance(section.blocks[-1], Folded)


def test_notes_and_warnings_are_shown(usual: Story) -> None:
    section = tell(usual, notes=["chosen on these rows"], exports={"warnings": ["0-shot: 2 empty"], "n": 1})
    assert Bullets(("chosen on these rows", "0-shot: 2 empty"), "warn") in section.blocks
    (folded,) = [folded for folded in of_kind(section, Folded) if folded.summary.startswith("Answers")]
    assert folded.blocks == (Table(("", "value"), (("n", "1"),)),)


def test_tasks_of_the_harness_are_compared_like_all_else(usual: Story) -> None:
    one = compare("sums: acc", ROWS["base"], ROWS["adapter"], higher_is_better=True)
    del one["prompts"]
    tasks = {"models": {"base": {"sums": {"version": "1"}}}, "comparisons": [one], "lines": ["..."]}
    section = tell(usual, lm_eval=tasks)
    assert Words("adapter against base:") in section.blocks
    assert of_kind(section, Table)[-1].rows[0][:4] == ("sums: acc", "0.200", "0.900", "+0.7")
    assert [drawing.name for drawing in of_kind(section, Drawing)] == ["evaluation0", "evaluation1", "lm_eval0"]
    assert "{" not in str([folded.blocks for folded in of_kind(section, Folded)])


def test_means_over_fewer_rows_than_the_scores_say_so(usual: Story) -> None:
    one = compare("absolute_error", [1.0, math.nan, 3.0] * 4, [1.0, 5.0, 2.0] * 4)
    name = of_kind(tell(usual, comparisons=[one]), Table)[1].rows[0][0]
    assert name.startswith("absolute_error (lower is better") and "the 8 rows" in name


def test_a_small_score_does_not_read_as_zero(usual: Story) -> None:
    one = compare("relative_error", [0.0004] * 20, [0.0002] * 20)
    assert of_kind(tell(usual, comparisons=[one]), Table)[1].rows[0][1:4] == ("0.0004", "0.0002", "−0.0002")


def test_objects_in_a_list_are_rows_of_their_own() -> None:
    assert table_of({"pairs": [{"base": "a"}, {"base": "b"}], "names": ["c", "d"]}).rows == (
        ("pairs.0.base", "a"),
        ("pairs.1.base", "b"),
        ("names", "c, d"),
    )


def test_cut_answers_and_further_figures_are_shown_with_what_they_do_to_the_verdict(usual: Story) -> None:
    found = evaluation()
    found["scores"][1] |= {"num_cut_answers": 9, "details": {"numeric_match": {"answered": 0.9, "r_squared": None}}}
    found["scores"][2] |= {"details": {"numeric_match": {"answered": "much"}, "odd": 3}}
    found["comparisons"][0]["note"] = "9 of 10 were cut"
    section = tell(usual, **found)
    scores, details = of_kind(section, Table)[:2]
    assert [row[-1] for row in scores.rows] == ["10", "10 (9 cut)", "10"]
    assert details.header == ("numeric_match", "prompts", "answered", "r_squared")
    assert details.rows == (("adapter", "0-shot", "0.900", "-"), ("merged", "0-shot", "-", "-"))
    words = [words.text for words in of_kind(section, Words)]
    assert "Note: 9 of 10 were cut." in words
    assert any(text.startswith("answered is the share") for text in words)


def test_how_answers_were_drawn_is_told_by_evaluation_and_sweep(usual: Story) -> None:
    drawn = {"temperature": 0.7, "top_p": 0.9, "seed": 3}
    winner = usual.outcome.scores.winner
    assert winner is not None
    scores = replace(usual.outcome.scores, winner=replace(winner, sampling=drawn))
    sampled = replace(usual, outcome=replace(usual.outcome, scores=scores))
    for section, is_told in (
        (tell(usual, settings={"evaluate": {"sampling": drawn}}), True),
        (tell_verdict(sampled), True),
        (tell_verdict(usual), False),
    ):
        assert any("temperature 0.7, top_p 0.9, seed 3" in words.text for words in of_kind(section, Words)) is is_told
