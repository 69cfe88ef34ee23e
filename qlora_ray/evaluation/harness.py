"""lm-evaluation-harness tasks in an evaluation: run once per model, kept beside its answers, compared in pairs."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_ray.console import format_score
from qlora_ray.evaluation.contenders import Contender
from qlora_ray.evaluation.journal import Journal
from qlora_ray.evaluation.lm_eval import SUFFIXES, TaskRequest, run_tasks
from qlora_ray.evaluation.results import PAIRS
from qlora_ray.evaluation.task_results import TaskResult, compare_tasks
from qlora_ray.runs import read_json, write_json


def is_finished(journal: Journal, model: str, tasks: Sequence[str], *, limit: int | None) -> bool:
    """Whether a model's results are there: of these tasks as their files are now, by the harness as it is now."""
    path = journal.tasks_path(model)
    if not tasks:
        return True
    return path.exists() and read_json(path)["request"] == _request(tasks, limit)


def run_harness(
    journal: Journal, contender: Contender, tasks: Sequence[str], *, limit: int | None, batch_size: int
) -> None:
    """Runs the tasks on a model unless their results are there.

    Raises:
        ConfigError: If the harness is not installed, or has no such task.
        DataError: If a task cannot be run.
    """
    if is_finished(journal, contender.name, tasks, limit=limit):
        return
    request = TaskRequest(tasks=tasks, limit=limit, batch_size=batch_size)
    found = run_tasks(contender.model, contender.tokenizer, request=request, precision=contender.precision)
    path = journal.tasks_path(contender.name)
    path.parent.mkdir(exist_ok=True)
    results = {task: result.to_dict() for task, result in found.items()}
    write_json(path, {"request": _request(tasks, limit), "results": results})


def read_harness(journal: Journal, models: Sequence[str], tasks: Sequence[str]) -> dict[str, Any]:
    """Returns the `lm_eval` of evaluation.json: each model's results, the comparisons, and lines to read."""
    results = {model: _read(journal.tasks_path(model)) for model in models}
    pairs = [(base, tuned) for base, tuned in PAIRS if base in models and tuned in models]
    compared = {pair: compare_tasks(results[pair[0]], results[pair[1]]) for pair in pairs}
    lines = [
        f"{model}  {task}  " + ", ".join(f"{name} {format_score(one.value)}" for name, one in result.metrics.items())
        for model in models
        for task, result in results[model].items()
    ]
    lines += [
        f"{base} -> {tuned}, {one.measure}: {one.verdict}  {one.sentence()}"
        for (base, tuned), comparisons in compared.items()
        for one in comparisons
    ]
    return {
        "tasks": list(tasks),
        "models": {model: {task: one.summary() for task, one in found.items()} for model, found in results.items()},
        "comparisons": [
            {"base_model": base, "tuned_model": tuned, **one.to_dict()}
            for (base, tuned), comparisons in compared.items()
            for one in comparisons
        ],
        "lines": lines,
    }


def _request(tasks: Sequence[str], limit: int | None) -> dict[str, Any]:
    """Returns what results are held against before they are taken for those of this run."""
    files = {task: Path(task).expanduser() for task in tasks if task.endswith(SUFFIXES)}
    return {
        "tasks": list(tasks),
        "limit": limit,
        "files": {
            task: hashlib.sha256(path.read_bytes()).hexdigest() for task, path in files.items() if path.is_file()
        },
        "lm_eval": _harness_version(),
    }


def _harness_version() -> str | None:
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> dict[str, TaskResult]:
    return {task: TaskResult.from_dict(values) for task, values in read_json(path)["results"].items()}
