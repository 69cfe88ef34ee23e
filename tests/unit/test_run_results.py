"""Figures of an evaluation as lines and tables, which say the same figure in the same way."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from qlora_ray.data.tokenizing import TokenizedSplit
from qlora_ray.evaluation.prompt_sets.sets import PromptSet
from qlora_ray.evaluation.run import results
from qlora_ray.evaluation.run.results import Findings, Score, format_scores, render_markdown
from qlora_ray.formats import format_score
from qlora_ray.scoring.sampling import Sampling
from qlora_ray.scoring.scores import ScoredAnswer, Scores

SCORES = Scores(
    loss=1.08663,
    num_tokens=10,
    num_rows=2,
    metrics={"relative_error": 0.0004, "absolute_error": 12345.6},
    row_metrics={},
    answers=[],
    num_cut_prompts=0,
    num_short_answers=0,
)
EVALUATION = {
    "target": {"name": "mine"},
    "rows": {"split": None, "num_rows": 0, "reason": "none asked for"},
    "models": {"base": "fp32"},
    "notes": [],
}


def findings_of(name: str, scores: Scores = SCORES) -> Findings:
    prompts = PromptSet(name, TokenizedSplit.of(name, [], [], [], []), [], num_answered=0)
    return Findings([Score("base", prompts, scores)])


@pytest.mark.parametrize(
    ("name", "cell"), [("0-shot", "0-shot"), ("my own  prompts", "my own prompts"), ("a|b\nc", r"a\|b c")]
)
def test_a_row_of_the_markdown_table_has_a_cell_per_column(name: str, cell: str) -> None:
    lines = render_markdown(EVALUATION, findings_of(name)).splitlines()
    heads, _, row = lines[lines.index("## Scores") + 2 :][:3]
    assert heads.count("|") == 8
    assert row == f"| base | {cell} | 1.0866 | 2.964 | 0.0004 | 12346 | 0 |"


def test_a_metric_reads_alike_in_lines_and_tables() -> None:
    found = findings_of("0-shot")
    line = results.describe_score(found.scores[0])
    assert line.startswith("loss 1.0866, perplexity 2.964, ")
    for value in SCORES.metrics.values():
        assert format_score(value) in line and format_score(value) in format_scores(found)


def test_a_figure_that_is_not_there_is_a_dash() -> None:
    found = findings_of("mine", replace(SCORES, loss=math.nan, metrics={"relative_error": math.nan}))
    assert format_scores(found).splitlines()[1].split() == ["base", "mine", "-", "-", "-", "0"]


def test_cut_answers_and_further_figures_stand_in_line_table_and_page() -> None:
    details = {"relative_error": {"answered": 0.5, "r_squared": -4.3231}}
    answers = [ScoredAnswer(row, "so", "7") for row in range(4)]
    found = findings_of("0-shot", replace(SCORES, details=details, answers=answers, num_cut_answers=3))
    line = results.describe_score(found.scores[0])
    assert "relative_error 0.0004 (answered 0.500, r_squared -4.323)" in line
    table = format_scores(found).splitlines()
    assert table[1].endswith("  4 (3 cut)")
    assert [line.split() for line in table[3:]] == [
        ["relative_error", "prompts", "answered", "r_squared"],
        ["base", "0-shot", "0.500", "-4.323"],
    ]
    page = render_markdown(EVALUATION, found)
    assert "| base | 0-shot | 0.500 | -4.323 |" in page and "| 4 (3 cut) |" in page
    assert "`answered` is the share of answers" in page


def test_a_page_says_how_answers_were_drawn() -> None:
    answered = replace(SCORES, answers=[ScoredAnswer(0, "a", "b")])
    assert "Answers" not in render_markdown(EVALUATION, findings_of("0-shot", answered))
    drawn = replace(answered, sampling=Sampling(0.7, 0.9, 3))
    page = render_markdown(EVALUATION, findings_of("0-shot", drawn))
    assert "temperature 0.7, top_p 0.9, seed 3" in page
