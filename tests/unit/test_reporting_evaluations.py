"""Evaluations and merges in the report, from the files that evaluate and export write."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_ray.exporting.merge.report import MeasuredModel, MergeReport
from qlora_ray.pages.blocks import Bullets, Drawing, Folded, Section, Table, Words
from qlora_ray.reporting.evaluations import tell_evaluation, tell_merges
from qlora_ray.reporting.facts import table_of
from qlora_ray.reporting.story import Story, read_story
from qlora_ray.reporting.verdicts import tell_verdict
from qlora_ray.scoring.comparison import compare_rows
from tests.unit.reporting_sweeps import usual_sketches, write_sweep

ROWS = {"base": [0.0] * 8 + [1.0] * 2, "adapter": [1.0] * 9 + [0.0], "merged": [1.0] * 9 + [0.0]}


def story_with(tmp_path: Path, **changes: Any) -> Story:
    return replace(read_story(write_sweep(tmp_path / "s", usual_sketches(), winner=3)), **changes)


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


def tables(section: Section | None) -> list[Table]:
    assert section is not None
    return [block for block in section.blocks if isinstance(block, Table)]


def test_scores_of_all_models_stand_in_one_table(tmp_path: Path) -> None:
    section = tell_evaluation(story_with(tmp_path, evaluation=evaluation()))
    table = tables(section)[0]
    assert table.header == ("model", "prompts", "loss", "perplexity", "exact_match", "rows", "answered")
    assert table.rows[1] == ("adapter", "0-shot", "1.2500", "3.490", "0.900", "208", "10")
    assert section is not None and section.blocks[0] == Words(
        "By python -m qlora_ray.evaluate of trial 0003, on 208 test rows. test: held out."
    )


def test_each_pair_of_models_is_compared_by_its_names(tmp_path: Path) -> None:
    section = tell_evaluation(story_with(tmp_path, evaluation=evaluation()))
    assert section is not None
    words = [block.text for block in section.blocks if isinstance(block, Words)]
    assert words[1:] == ["adapter against base, 0-shot:", "merged against adapter, 0-shot:"]
    assert tables(section)[1].rows[0][:4] == ("exact_match", "0.200", "0.900", "+0.7")
    drawings = [block for block in section.blocks if isinstance(block, Drawing)]
    assert [drawing.name for drawing in drawings] == ["evaluation0", "evaluation1"]


def test_an_evaluation_with_unknown_parts_is_still_shown(tmp_path: Path) -> None:
    section = tell_evaluation(story_with(tmp_path, evaluation={"scores": [{"model": "base"}, 3], "comparisons": [{}]}))
    assert tables(section)[0].rows[0] == ("base", "none", "-", "-", "-", "-")


def test_no_evaluation_and_no_merge_are_no_sections(tmp_path: Path) -> None:
    story = story_with(tmp_path)
    assert tell_evaluation(story) is None and tell_merges(story) is None


def test_a_merge_is_told_by_its_measured_models(tmp_path: Path) -> None:
    trained = MeasuredModel("nf4 + adapter", 0.5, 0.0, 0.0, 1.0, 1.0, "nf4")
    merged = MeasuredModel("dequant", 0.5012, 0.0012, 1.234e-5, 0.9987, None, "bf16", 0.75, 0.1, 4 * 1024**2, 1)
    report = MergeReport(
        rule="dequant",
        reason="its KL is the lower one",
        options={"rule": "auto"},
        dtype="bf16",
        head_dtype="bf16",
        tying="tied",
        adapter={"kind": "LoRA"},
        base={"name": "embedded"},
        quantization={"method": "nf4"},
        rows={"split": "test"},
        models=[trained, merged],
        notes=["head and embedding are one"],
        nf4_copy=None,
        seconds=12.0,
        peak_memory_bytes=1024**3,
        versions={"torch": "2.13"},
    )
    section = tell_merges(story_with(tmp_path, merges={"bundle/merged": report.to_dict()}))
    assert section is not None
    assert section.blocks[0] == Words("bundle/merged: kept dequant. its KL is the lower one")
    (table,) = tables(section)
    assert table.marked == 1
    assert table.rows[1] == ("dequant", "bf16", "0.5012", "+0.0012", "1.23e-5", "99.9 %", "-", "75.0 %", "4 MiB")
    assert Bullets(("head and embedding are one",)) in section.blocks
    assert isinstance(section.blocks[-1], Folded)


def test_notes_and_warnings_are_shown(tmp_path: Path) -> None:
    found = {**evaluation(), "notes": ["chosen on these rows"], "exports": {"warnings": ["0-shot: 2 empty"], "n": 1}}
    section = tell_evaluation(story_with(tmp_path, evaluation=found))
    assert section is not None
    assert Bullets(("chosen on these rows", "0-shot: 2 empty"), "warn") in section.blocks
    (folded,) = [block for block in section.blocks if isinstance(block, Folded) and block.summary.startswith("Answers")]
    assert folded.blocks == (Table(("", "value"), (("n", "1"),)),)


def test_tasks_of_the_harness_are_compared_like_all_else(tmp_path: Path) -> None:
    one = compare_rows("sums: acc", ROWS["base"], ROWS["adapter"], higher_is_better=True).to_dict()
    comparisons = [{"base_model": "base", "tuned_model": "adapter", **one}]
    tasks = {"models": {"base": {"sums": {"version": "1"}}}, "comparisons": comparisons, "lines": ["..."]}
    section = tell_evaluation(story_with(tmp_path, evaluation={**evaluation(), "lm_eval": tasks}))
    assert section is not None
    assert Words("adapter against base:") in section.blocks
    assert tables(section)[-1].rows[0][:4] == ("sums: acc", "0.200", "0.900", "+0.7")
    names = [block.name for block in section.blocks if isinstance(block, Drawing)]
    assert names == ["evaluation0", "evaluation1", "lm_eval0"]
    assert "{" not in str([block.blocks for block in section.blocks if isinstance(block, Folded)])


def test_means_over_fewer_rows_than_the_scores_say_so(tmp_path: Path) -> None:
    base, tuned = [1.0, math.nan, 3.0] * 4, [1.0, 5.0, 2.0] * 4
    one = compare_rows("absolute_error", base, tuned, higher_is_better=False).to_dict()
    comparisons = [{"prompts": "0-shot", "base_model": "base", "tuned_model": "adapter", **one}]
    section = tell_evaluation(story_with(tmp_path, evaluation={**evaluation(), "comparisons": comparisons}))
    assert tables(section)[1].rows[0][0] == (
        "absolute_error (lower is better; means over the 8 rows both have a score for)"
    )


def test_a_small_score_does_not_read_as_zero(tmp_path: Path) -> None:
    one = compare_rows("relative_error", [0.0004] * 20, [0.0002] * 20, higher_is_better=False).to_dict()
    comparisons = [{"prompts": "0-shot", "base_model": "base", "tuned_model": "adapter", **one}]
    section = tell_evaluation(story_with(tmp_path, evaluation={**evaluation(), "comparisons": comparisons}))
    assert tables(section)[1].rows[0][1:4] == ("0.0004", "0.0002", "−0.0002")


def test_objects_in_a_list_are_rows_of_their_own() -> None:
    assert table_of({"pairs": [{"base": "a"}, {"base": "b"}], "names": ["c", "d"]}).rows == (
        ("pairs.0.base", "a"),
        ("pairs.1.base", "b"),
        ("names", "c, d"),
    )


def test_cut_answers_and_further_figures_are_shown_with_what_they_do_to_the_verdict(tmp_path: Path) -> None:
    found = evaluation()
    found["scores"][1] |= {"num_cut_answers": 9, "details": {"numeric_match": {"answered": 0.9, "r_squared": None}}}
    found["scores"][2] |= {"details": {"numeric_match": {"answered": "much"}, "odd": 3}}
    found["comparisons"][0]["note"] = "9 of 10 answers of adapter were cut at 96 tokens (base: 0)"
    section = tell_evaluation(story_with(tmp_path, evaluation=found))
    scores, details = tables(section)[:2]
    assert [row[-1] for row in scores.rows] == ["10", "10 (9 cut)", "10"]
    assert details.header == ("numeric_match", "prompts", "answered", "r_squared")
    assert details.rows == (("adapter", "0-shot", "0.900", "-"), ("merged", "0-shot", "-", "-"))
    assert section is not None
    words = [block.text for block in section.blocks if isinstance(block, Words)]
    assert "Note: 9 of 10 answers of adapter were cut at 96 tokens (base: 0)." in words
    assert any(text.startswith("answered is the share of answers with a number") for text in words)


def test_how_answers_were_drawn_is_told_by_evaluation_and_sweep(tmp_path: Path) -> None:
    drawn = {"temperature": 0.7, "top_p": 0.9, "seed": 3}
    words = Words("Answers: one per prompt, sampled at temperature 0.7, top_p 0.9, seed 3.", "muted")
    found = {**evaluation(), "settings": {"evaluate": {"sampling": drawn}}}
    story = story_with(tmp_path, evaluation=found)
    section = tell_evaluation(story)
    assert section is not None and words in section.blocks
    assert words not in tell_verdict(story).blocks
    scores = {**story.outcome.scores, "winner": {**story.outcome.scores["winner"], "sampling": drawn}}
    sampled = replace(story, outcome=replace(story.outcome, scores=scores))
    assert words in tell_verdict(sampled).blocks
