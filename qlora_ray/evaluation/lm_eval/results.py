"""What the lm-evaluation-harness reported, row by row, so that two models can be paired. Loads no harness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

from qlora_ray.errors import DataError
from qlora_ray.runs.files import to_plain_json
from qlora_ray.scoring.comparison import Comparison, compare_rows

PLAIN_FILTER = "none"
# What two results of a task must have in common for their rows to be answers to the same prompts.
SAME_PROMPTS = ("version", "num_fewshot", "chat_template")
# Ours: rows are the metric's if their mean is the figure reported, but for rounding.
SAME_MEAN = 1e-6


@dataclass(frozen=True)
class MetricResult:
    """A metric as the harness reports it; `stderr` is None where it has none."""

    value: float
    stderr: float | None
    higher_is_better: bool


@dataclass(frozen=True)
class TaskResult:
    """What one model scored in one task, or in a group of tasks.

    Attributes:
        metrics: By the harness's name, with its filter behind it where there is one: `exact_match,strict-match`.
        num_samples: Rows scored.
        version: The task's version in the harness; figures of different versions must not be compared.
        chat_template: Whether prompts went through the tokenizer's chat template.
        rows: Score of each row by its number, for metrics that are means of their rows; empty for a group.
    """

    metrics: dict[str, MetricResult]
    num_samples: int
    num_fewshot: int | None
    version: str | None
    chat_template: bool
    rows: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON, from which `from_dict` makes the result again."""
        plain: dict[str, Any] = to_plain_json(asdict(self))
        return plain

    def summary(self) -> dict[str, Any]:
        """Returns plain JSON without the rows."""
        return {key: value for key, value in self.to_dict().items() if key != "rows"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskResult:
        """Returns the result that `to_dict` wrote."""
        metrics = {
            name: MetricResult(**{**metric, "value": _or_nan(metric["value"])})
            for name, metric in data["metrics"].items()
        }
        return cls(**{**data, "metrics": metrics})


def read_results(found: Mapping[str, Any], *, chat_template: bool) -> dict[str, TaskResult]:
    """Returns the harness's results (what `simple_evaluate` returns) as ours."""
    samples = found.get("samples") or {}
    sizes = found.get("n-samples") or {}
    results = {}
    for task, reported in {**found["results"], **(found.get("groups") or {})}.items():
        directions = (found.get("higher_is_better") or {}).get(task) or {}
        metrics = _read_metrics(reported, directions)
        if not metrics:
            continue  # a group without figures of its own
        rows = _read_rows(samples.get(task, []), metrics)
        num_samples = (sizes.get(task) or {}).get("effective") or reported.get("sample_len") or 0
        version = (found.get("versions") or {}).get(task)
        results[task] = TaskResult(
            metrics=metrics,
            num_samples=int(num_samples),
            num_fewshot=(found.get("n-shot") or {}).get(task),
            version=None if version is None else str(version),
            chat_template=chat_template,
            rows=rows,
        )
    return results


def compare_tasks(base: Mapping[str, TaskResult], tuned: Mapping[str, TaskResult]) -> list[Comparison]:
    """Returns one comparison per task and metric that has rows in both; `measure` is `task: metric`.

    Raises:
        DataError: If the two were scored on different rows of a task, in another version of it, with another number
            of examples in the prompt, or one of them without the chat template.
    """
    compared = []
    for task, ours in tuned.items():
        if task in base:
            _check_same_prompts(task, base[task], ours)
        for metric, tuned_rows in ours.rows.items():
            base_rows = base[task].rows.get(metric) if task in base else None
            if base_rows is None:
                continue
            if base_rows.keys() != tuned_rows.keys():
                raise DataError(
                    f"lm-eval: both models must be scored on the same rows of {task}, got {len(base_rows)} and "
                    f"{len(tuned_rows)} with other numbers. Run both with one limit."
                )
            compared.append(
                compare_rows(
                    f"{task}: {metric}",
                    list(base_rows.values()),
                    [tuned_rows[row] for row in base_rows],
                    higher_is_better=ours.metrics[metric].higher_is_better,
                )
            )
    return compared


def _check_same_prompts(task: str, base: TaskResult, tuned: TaskResult) -> None:
    for name in SAME_PROMPTS:
        first, second = getattr(base, name), getattr(tuned, name)
        if first != second:
            raise DataError(
                f"lm-eval: both models must be scored in {task} with one {name}, got {first} and {second}. "
                "Run both again with one harness, and with tokenizers that both have a chat template or both have none."
            )


def _read_metrics(reported: Mapping[str, Any], directions: Mapping[str, Any]) -> dict[str, MetricResult]:
    metrics = {}
    for key, value in reported.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = reported.get(f"{metric}_stderr,{filtered}")
        metrics[_name(metric, filtered)] = MetricResult(
            value=float(value),
            stderr=float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None,
            higher_is_better=directions.get(metric) is not False,
        )
    return metrics


def _read_rows(
    samples: Sequence[Mapping[str, Any]], metrics: Mapping[str, MetricResult]
) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for sample in samples:
        filtered = sample.get("filter", PLAIN_FILTER)
        for metric in sample.get("metrics") or ():
            score = sample.get(metric)
            if isinstance(score, Real):
                rows.setdefault(_name(metric, filtered), {})[str(sample["doc_id"])] = float(score)
    # Others are not means of rows (perplexity, F1 over the corpus), so pairing rows would compare something else.
    return {
        name: scores
        for name, scores in rows.items()
        if name in metrics and math.isclose(sum(scores.values()) / len(scores), metrics[name].value, abs_tol=SAME_MEAN)
    }


def _name(metric: str, filtered: str) -> str:
    return metric if filtered == PLAIN_FILTER else f"{metric},{filtered}"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
