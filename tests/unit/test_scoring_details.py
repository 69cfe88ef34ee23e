"""Further figures of metrics as tables and words."""

from __future__ import annotations

import json

import pytest

from qlora_ray.scoring.details import (
    ANSWERED,
    bracket_details,
    count_answers,
    describe_details,
    describe_sampling,
    tabulate_details,
)
from qlora_ray.scoring.metrics.numeric import NumericMatch
from qlora_ray.scoring.sampling import Sampling

FIGURES = {"numeric_match": {"answered": 0.98, "r_squared": -31200.4}}


def test_each_metric_with_further_figures_has_a_table_of_the_models_that_have_some() -> None:
    rows = [
        (("base", "0-shot"), FIGURES),
        (("adapter", "0-shot"), {"numeric_match": {"answered": 1.0, "r_squared": None}, "mine": {"depth": 3.0}}),
        (("base", "qualitative"), {}),
    ]
    assert tabulate_details(rows, labels=("prompts",)) == [
        [
            ["numeric_match", "prompts", "answered", "r_squared"],
            ["base", "0-shot", "0.980", "-31200"],
            ["adapter", "0-shot", "1.000", "-"],
        ],
        [["mine", "prompts", "depth"], ["adapter", "0-shot", "3.000"]],
    ]
    assert tabulate_details([(("base",), {})]) == []


def test_a_line_has_them_in_brackets_behind_the_value() -> None:
    assert bracket_details(FIGURES["numeric_match"]) == " (answered 0.980, r_squared -31200)"
    assert bracket_details({}) == ""


def test_what_means_leave_out_is_said_where_that_share_is_shown() -> None:
    assert len(describe_details(tabulate_details([(("base",), FIGURES)]))) == 1
    assert describe_details([["mine", "depth"]]) == []
    # The name is the metric's own: it would be explained no more if it changed.
    assert ANSWERED in NumericMatch().details(["7", "none"], ["7", "8"])


@pytest.mark.parametrize(
    ("num_answers", "num_cut", "told"),
    [(1200, 0, "1,200"), (100, 52, "100 (52 cut)"), (100.0, None, "100"), (None, None, "-"), (0, 0, "0")],
)
def test_answers_are_told_with_those_that_were_cut(num_answers: float | None, num_cut: float | None, told: str) -> None:
    assert count_answers(num_answers, num_cut) == told


def test_answers_are_told_with_those_that_were_ended_early_for_either_reason() -> None:
    assert count_answers(100, 5, 40, 12) == "100 (5 cut, 52 ended early)"
    assert count_answers(100, 0, 0, 12) == "100 (12 ended early)"


def test_draws_read_alike_from_an_evaluation_and_from_its_file() -> None:
    drawn = Sampling(temperature=0.7, top_p=1.0, seed=4_000_000_000)
    expected = "sampled at temperature 0.7, top_p 1, seed 4000000000"
    assert describe_sampling(json.loads(json.dumps(drawn.to_dict()))) == str(drawn) == expected
