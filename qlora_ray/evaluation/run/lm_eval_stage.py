"""lm-evaluation-harness tasks in an evaluation: run once per model, kept beside its answers, compared in pairs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_ray.errors import DataError
from qlora_ray.evaluation.lm_eval.results import TaskResult, compare_tasks
from qlora_ray.evaluation.lm_eval.task_files import hash_task
from qlora_ray.evaluation.lm_eval.tasks import SUFFIX, TaskRequest, run_tasks
from qlora_ray.evaluation.models.loading import LoadedModel
from qlora_ray.evaluation.run.answer_log import AnswerLog
from qlora_ray.evaluation.run.results import PAIRS
from qlora_ray.formats import format_score
from qlora_ray.runs import read_json, write_json
from qlora_ray.scoring.comparison import Comparison


def is_finished(answer_log: AnswerLog, model: str, request: TaskRequest) -> bool:
    """Whether a model's results are there: of these tasks as their files are now, by the harness as it is now.

    True if no tasks are asked for.

    Args:
        answer_log: Where results are kept.
        model: The model that ran the tasks: base, adapter or merged.
        request: The tasks and their number of shots and rows.
    """
    path = answer_log.tasks_path(model)
    if not request.tasks:
        return True
    return path.exists() and read_json(path)["request"] == _identify(request)


def run_harness(answer_log: AnswerLog, loaded: LoadedModel, request: TaskRequest) -> None:
    """Runs the tasks on a model unless their results are there.

    Args:
        answer_log: Where results are kept.
        loaded: The model to run them on.
        request: The tasks and their number of shots and rows.

    Raises:
        ConfigError: If the harness is not installed, or has no such task.
        DataError: If a task cannot be run.
    """
    if is_finished(answer_log, loaded.name, request):
        return
    found = run_tasks(loaded.model, loaded.tokenizer, request=request, precision=loaded.precision)
    path = answer_log.tasks_path(loaded.name)
    path.parent.mkdir(exist_ok=True)
    results = {task: result.to_dict() for task, result in found.items()}
    write_json(path, {"request": _identify(request), "results": results})


def read_harness(answer_log: AnswerLog, models: Sequence[str], request: TaskRequest) -> dict[str, Any]:
    """Returns the `lm_eval` of evaluation.json: each model's results, the comparisons, lines to read, and notes.

    Args:
        answer_log: Where results are kept.
        models: The models to report, each compared with those before it.
        request: The tasks and their number of shots and rows.
    """
    results = {model: _read(answer_log.tasks_path(model)) for model in models}
    by_pair, not_compared = _compare(results)
    compared = [(*pair, comparison) for pair, comparisons in by_pair.items() for comparison in comparisons]
    lines = [
        f"{model}  {task}{_shots(result)}  "
        + ", ".join(f"{name} {format_score(metric.value)}" for name, metric in result.metrics.items())
        for model in models
        for task, result in results[model].items()
    ]
    lines += [
        f"{base} -> {tuned}, {comparison.measure}: {comparison.verdict}  {comparison.sentence()}"
        for base, tuned, comparison in compared
    ]
    return {
        "tasks": list(request.tasks),
        "models": {
            model: {task: result.summary() for task, result in found.items()} for model, found in results.items()
        },
        "comparisons": [
            {"base_model": base, "tuned_model": tuned, **comparison.to_dict()} for base, tuned, comparison in compared
        ],
        "lines": lines,
        "notes": [*_note_other_shots(results, request.num_fewshot), *not_compared],
    }


def _compare(
    results: Mapping[str, Mapping[str, TaskResult]],
) -> tuple[dict[tuple[str, str], list[Comparison]], list[str]]:
    """The comparisons of each pair of models, and a note on each task of a pair that cannot be compared."""
    compared: dict[tuple[str, str], list[Comparison]] = {}
    notes = []
    for base, tuned in PAIRS:
        if base not in results or tuned not in results:
            continue
        compared[base, tuned] = []
        for task, result in results[tuned].items():
            try:
                compared[base, tuned] += compare_tasks(results[base], {task: result})
            except DataError as error:
                notes.append(f"{base} -> {tuned} is not compared: {error}")
    return compared, notes


def _shots(result: TaskResult) -> str:
    return "" if result.num_fewshot is None else f" ({result.num_fewshot}-shot)"


def _note_other_shots(results: Mapping[str, Mapping[str, TaskResult]], asked: int | None) -> list[str]:
    """The tasks that ran with another number of examples than was asked for: those that fix 0."""
    ran = {task: result.num_fewshot for found in results.values() for task, result in found.items()}
    return [
        f"{task} ran with {num} examples in the prompt, as the task fixes it, and not with {asked}"
        for task, num in ran.items()
        if asked is not None and num is not None and num != asked
    ]


def _identify(request: TaskRequest) -> dict[str, Any]:
    """Returns what results are held against before they are taken for those of this run."""
    return {
        "tasks": list(request.tasks),
        "num_fewshot": request.num_fewshot,
        "limit": request.limit,
        "seed": request.seed,
        "files": {task: hash_task(Path(task)) for task in request.tasks if task.endswith(SUFFIX)},
        "lm_eval": _harness_version(),
    }


def _harness_version() -> str | None:
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> dict[str, TaskResult]:
    return {task: TaskResult.from_dict(values) for task, values in read_json(path)["results"].items()}
