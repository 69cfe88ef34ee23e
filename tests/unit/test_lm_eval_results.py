"""What the harness reports becomes metrics and rows, and rows of two models are paired."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qlora_ray.errors import DataError
from qlora_ray.evaluation.lm_eval.results import TaskResult, compare_tasks, read_results


def _sample(row: int, name: str, **scores: Any) -> dict[str, Any]:
    return {"doc_id": row, "filter": name, "metrics": list(scores), **scores}


def _report(*, right: int, num: int = 40) -> dict[str, Any]:
    """Two filters and a corpus metric, in the layout that lm-eval 0.4.13's simple_evaluate returns."""
    share = right / num
    return {
        "results": {
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": share,
                "exact_match_stderr,strict-match": 0.07,
                "exact_match,flexible-extract": 1.0,
                "exact_match_stderr,flexible-extract": 0.0,
                "perplexity,none": 3.5,
                "perplexity_stderr,none": "N/A",
            },
            "maths": {"alias": " - maths"},
        },
        "samples": {
            "gsm8k": [
                *(_sample(row, "strict-match", exact_match=float(row < right)) for row in range(num)),
                *(_sample(row, "flexible-extract", exact_match=1.0) for row in range(num)),
                *(_sample(row, "none", perplexity=(1.2, 3)) for row in range(num)),
            ]
        },
        "higher_is_better": {"gsm8k": {"exact_match": True, "perplexity": False}},
        "versions": {"gsm8k": 3.0},
        "n-shot": {"gsm8k": 5},
        "n-samples": {"gsm8k": {"original": 1319, "effective": num}},
    }


def _read(*, right: int, num: int = 40) -> dict[str, TaskResult]:
    return read_results(_report(right=right, num=num), chat_template=False)


def test_metrics_keep_their_filter_error_and_direction() -> None:
    (result,) = _read(right=10).values()
    assert {
        name: (metric.value, metric.stderr, metric.higher_is_better) for name, metric in result.metrics.items()
    } == {
        "exact_match,strict-match": (0.25, 0.07, True),
        "exact_match,flexible-extract": (1.0, 0.0, True),
        "perplexity": (3.5, None, False),
    }
    assert (result.num_samples, result.num_fewshot, result.version) == (40, 5, "3.0")


def test_only_means_of_rows_have_rows() -> None:
    (result,) = _read(right=10).values()
    assert set(result.rows) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert sum(result.rows["exact_match,strict-match"].values()) == 10
    report = _report(right=10)
    report["results"]["gsm8k"]["exact_match,strict-match"] = 0.3
    assert set(read_results(report, chat_template=False)["gsm8k"].rows) == {"exact_match,flexible-extract"}


def test_a_result_comes_back_from_json() -> None:
    result = _read(right=10)["gsm8k"]
    assert TaskResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert "rows" not in result.summary()


def test_rows_of_two_models_are_paired() -> None:
    base, tuned = _read(right=5), _read(right=25)
    strict, flexible = compare_tasks(base, tuned)
    assert (strict.measure, strict.verdict) == ("gsm8k: exact_match,strict-match", "better")
    assert strict.difference == pytest.approx(0.5)
    assert strict.p_value == pytest.approx(2 * 0.5**20)  # McNemar's exact p of 20 rows gained and none lost
    assert flexible.verdict == "no different"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "4.0"}, "in gsm8k with one version, got 3.0 and 4.0"),
        ({"num_fewshot": 0}, "in gsm8k with one num_fewshot, got 5 and 0"),
        ({"chat_template": True}, "in gsm8k with one chat_template, got False and True"),
        ({"rows": _read(right=5, num=30)["gsm8k"].rows}, "same rows of gsm8k, got 40 and 30"),
    ],
)
def test_answers_to_other_prompts_or_rows_are_not_compared(changes: dict[str, Any], words: str) -> None:
    base, tuned = _read(right=5), _read(right=25)
    tuned["gsm8k"] = replace(tuned["gsm8k"], **changes)
    with pytest.raises(DataError, match=words):
        compare_tasks(base, tuned)


def test_a_task_that_one_model_was_not_run_on_is_left_out() -> None:
    assert compare_tasks({}, _read(right=5)) == []
