"""An evaluation from its target to its results: find, check, load, ask, score, compare, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_ray.console import Console
from qlora_ray.errors import RunError
from qlora_ray.evaluation.prompt_sets.sets import PromptSet
from qlora_ray.evaluation.run.answer_log import AnswerLog
from qlora_ray.evaluation.run.models import TASKS, FailedModel, ModelRuns, describe_lack
from qlora_ray.evaluation.run.options import Options
from qlora_ray.evaluation.run.plan import Plan, describe_settings, make_plan
from qlora_ray.evaluation.run.prompts import PromptRun
from qlora_ray.evaluation.run.results import (
    Findings,
    Score,
    collect_findings,
    describe_score,
    format_pairs,
    format_scores,
    read_scores,
    render_markdown,
)
from qlora_ray.evaluation.target.target import MODEL_NAMES, ModelName
from qlora_ray.formats import plural
from qlora_ray.runs import write_json, write_text
from qlora_ray.runs.artifacts import ARTIFACTS, write_evaluation_artifacts
from qlora_ray.scoring.comparison import Comparison
from qlora_ray.scoring.sampling import choose_sampling


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        evaluation: evaluation.json.
        lack: Which models have no results, or none of the harness, and what helps; None: all have.
    """

    folder: Path
    findings: Findings
    evaluation: dict[str, Any]
    lack: str | None = None

    @property
    def deciding(self) -> Comparison | None:
        """The comparison that says whether tuning helped, if there is one."""
        return self.findings.deciding()


def run_evaluation(options: Options, *, console: Console, is_live: bool) -> Outcome:
    """Evaluates a target; goes on where an earlier run of the same evaluation was stopped.

    Args:
        is_live: Whether the console is a terminal.

    Raises:
        QloraRayError: If the target, the config, the data or a model is not usable; then nothing is written.
    """
    console.progress("reading ...")
    plan = make_plan(options)
    folder = options.to or plan.target.to
    answer_log = AnswerLog(folder, describe_settings(plan))
    if options.fresh:
        answer_log.check_folder()
    else:
        answer_log.check()
    _print_plan(console, plan, folder)
    prompt_run = PromptRun(
        answer_log,
        console,
        plan.config.evaluate,
        loss_batch_size=plan.config.training.per_device_eval_batch_size,
        is_live=is_live,
        heads=plan.heads,
    )
    with answer_log.hold():
        if options.fresh:
            answer_log.clear()
        # Again: another run may have been there since.
        answer_log.check()
        model_runs = ModelRuns(
            prompt_run,
            plan.load_plan,
            plan.names,
            plan.sets,
            plan.tasks,
            tell=lambda model, prompts, rate: _tell_score(console, plan, answer_log, model, prompts, rate),
        )
        failed_models = model_runs.run()
        return _conclude(model_runs, plan, failed_models, console)


def _tell_score(
    console: Console, plan: Plan, answer_log: AnswerLog, model: ModelName, prompts: PromptSet, rate: float | None
) -> None:
    """The line of a finished model and prompt set."""
    scores = read_scores(
        answer_log,
        model,
        prompts,
        metrics=plan.metrics[prompts.name],
        limited=plan.limited[prompts.name],
        sampling=choose_sampling(plan.config.evaluate),
        heads=plan.heads,
    )
    words = describe_score(Score(model, prompts, scores))
    speed = plural(prompts.num_answered, "answer") + (f", {rate:.1f} rows/s" if rate is not None else "")
    console.event("  ".join(filter(None, (model, prompts.name, words, f"({speed})"))))


def _conclude(model_runs: ModelRuns, plan: Plan, failed_models: Sequence[FailedModel], console: Console) -> Outcome:
    """Scores the models that have answered, and writes evaluation.md, evaluation.json and, last, artifacts.json."""
    from qlora_ray.evaluation.answers.page import export_answers
    from qlora_ray.evaluation.run.lm_eval_stage import read_harness

    answer_log = model_runs.prompt_run.answer_log
    names = [name for name in plan.names if model_runs.has_answered(name)]
    for name in names:
        for prompts in plan.sets:
            answer_log.tidy(name, prompts.name)
    sampling = choose_sampling(plan.config.evaluate)
    findings = collect_findings(
        answer_log, names, plan.sets, metrics=plan.metrics, limited=plan.limited, sampling=sampling, heads=plan.heads
    )
    target = plan.target
    evaluation = {
        "target": {
            "name": Path(target.path).name,
            "path": target.path,
            "base": target.base.name if target.base is not None else None,
            **answer_log.settings["target"],
        },
        "rows": plan.rows,
        "metrics": plan.metrics_reason,
        "settings": {
            **{key: answer_log.settings[key] for key in ("evaluate", "device", "versions")},
            "prompts": {prompts.name: prompts.to_dict() for prompts in plan.sets},
        },
        "models": {name: answer_log.settings["loaded"][name] for name in names},
        **findings.to_dict(),
        "notes": [*plan.notes, *_left_out(answer_log, plan), *_failed_model_notes(plan, failed_models)],
    }
    _print_scores(console, findings)
    answered = [prompts.name for prompts in plan.sets if prompts.num_answered]
    if answered:
        try:
            evaluation["exports"] = export_answers(answer_log.folder, prompt_sets=answered, models=names)
        except RunError as error:
            # The page is the largest file by far; a disk too full for it may still hold the scores.
            evaluation["exports"] = {"warnings": [str(error)]}
    if plan.tasks.tasks:
        ran = [name for name in plan.names if model_runs.has_run_tasks(name)]
        evaluation["lm_eval"] = read_harness(answer_log, ran, plan.tasks)
        evaluation["notes"] += evaluation["lm_eval"].pop("notes")
    write_text(answer_log.folder / "evaluation.md", render_markdown(evaluation, findings))
    write_json(answer_log.folder / "evaluation.json", evaluation)
    write_evaluation_artifacts(answer_log.folder)
    _print_rest(console, plan, evaluation, answer_log.folder)
    with_results = [name for name in plan.names if model_runs.has_results(name)]
    lack = describe_lack(failed_models, plan.load_plan, with_results=with_results) if failed_models else None
    return Outcome(answer_log.folder, findings, evaluation, lack)


def _print_plan(console: Console, plan: Plan, folder: Path) -> None:
    target = plan.target
    console.end_progress()
    trial = f", trial {target.trial}" if target.trial else ""
    console.line(f"target {target.path} ({target.kind}{trial}): {', '.join(plan.names)}")
    if plan.rows["split"]:
        console.line(f"rows   {plan.rows['num_rows']} of {plan.rows['reason']}")
        console.line(f"score  {plan.metrics_reason}")
    sets = ", ".join(
        f"{prompts.name} ({plural(prompts.num_answered, 'answer')} of up to {prompts.max_new_tokens} tokens)"
        for prompts in plan.sets
    )
    drawn = choose_sampling(plan.config.evaluate)
    console.line(f"asked  {sets or 'nothing'}{f'; {drawn}' if sets and drawn is not None else ''}")
    for note in plan.notes:
        console.line(f"note   {note}")
    console.line(f"to     {folder}/")
    console.line()


def _left_out(answer_log: AnswerLog, plan: Plan) -> list[str]:
    """Models that answered here before and are not asked for now: their rows stay, their scores are not repeated."""
    there = [name for name in MODEL_NAMES if name not in plan.names and (answer_log.folder / name).is_dir()]
    return [f"{name} answered here before and is left out: name it in --models to compare it" for name in there]


def _failed_model_notes(plan: Plan, failed_models: Sequence[FailedModel]) -> list[str]:
    """What a page says of models that did not fit the device, or whose tasks failed."""
    notes = []
    for failed_model in failed_models:
        missing = "lm-eval tasks" if failed_model.stage == TASKS else "answers"
        if failed_model.lacks_room:
            notes.append(f"{failed_model} did not fit {plan.load_plan.device.name}: its {missing} are missing")
        else:
            notes.append(f"{failed_model.model}: its {missing} are missing: {failed_model.cause.rstrip('.')}")
    return notes


def _print_scores(console: Console, findings: Findings) -> None:
    console.end_progress()
    if findings.scores:
        console.line()
        console.line(format_scores(findings))
    for line in format_pairs(findings):
        console.line(line)


def _print_rest(console: Console, plan: Plan, evaluation: dict[str, Any], folder: Path) -> None:
    for task in evaluation.get("lm_eval", {}).get("lines", []):
        console.line(task)
    for note in evaluation["notes"][len(plan.notes) :]:
        console.line(f"note   {note}")
    for warning in evaluation.get("exports", {}).get("warnings", []):
        console.line(f"note   {warning}")
    exported = evaluation.get("exports", {}).get("files", [])
    names = ["evaluation.json", "evaluation.md", *exported, ARTIFACTS, "<model>/<prompts>.jsonl"]
    console.line(f"files  {folder}/  ({', '.join(names)})")
