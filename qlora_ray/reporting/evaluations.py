"""What came after the sweep, in sections: evaluation/evaluation.json and every merge_report.json, where they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_ray.formats import (
    format_bytes,
    format_count,
    format_loss,
    format_number,
    format_score,
    format_share,
    format_value,
)
from qlora_ray.pages.blocks import Block, Bullets, Folded, Section, Table, Words
from qlora_ray.reporting.facts import table_of
from qlora_ray.reporting.story import Story
from qlora_ray.reporting.verdicts import show_comparisons, show_details, show_heads, show_sampling
from qlora_ray.runs.score_records import MergedModel, ScoreRecord
from qlora_ray.scoring.comparison import UNREADABLE, Comparison
from qlora_ray.scoring.details import count_answers

SCORE_COLUMNS = ("model", "prompts", "loss", "perplexity")
MERGE_COLUMNS = (
    "model",
    "weights",
    "loss",
    "against trained",
    "KL",
    "same token",
    "same answer",
    "changed weights",
    "size",
)


def tell_evaluation(story: Story) -> Section | None:
    """Base, adapter and merged on the same rows; None if there is no evaluation."""
    evaluation = story.evaluation
    if evaluation is None:
        return None
    rows = evaluation.rows
    rows_of = " ".join(format_value(value) for value in (rows.num_rows, rows.split) if value is not None)
    of = f" of trial {evaluation.target.trial}" if evaluation.target.trial else ""
    reason = f" {rows.reason}." if rows.reason else ""
    blocks: list[Block] = [
        Words(f"By python -m qlora_ray.evaluate{of}, on {rows_of or 'its'} rows.{reason}"),
        _scores_table(evaluation.scores),
        *_details(evaluation.scores),
        *show_heads(
            [((format_value(score.model), format_value(score.prompts)), score.heads) for score in evaluation.scores],
            labels=("prompts",),
        ),
        # Not of the scores: there older evaluations have none.
        *show_sampling(evaluation.settings.evaluate.sampling),
        *_comparisons(evaluation.comparisons, name="evaluation"),
    ]
    task_comparisons = _comparisons(evaluation.lm_eval.comparisons, name="lm_eval")
    if task_comparisons:
        blocks += [Words("Tasks of the lm-evaluation-harness, paired by row:"), *task_comparisons]
    warnings = (*evaluation.notes, *evaluation.exports.warnings)
    if warnings:
        blocks += [Words("To know of these figures:", "warn"), Bullets(warnings, "warn")]
    for title, values in (
        ("How the models were loaded", evaluation.models),
        ("Answers, as exported", evaluation.exports.extra),
        ("lm-evaluation-harness", evaluation.lm_eval.extra),
    ):
        if values:
            blocks.append(Folded(title, (table_of(values),)))
    return Section("Evaluation", blocks)


def tell_merges(story: Story) -> Section | None:
    """Each merge's figures; None if nothing was merged."""
    if not story.merges:
        return None
    blocks: list[Block] = []
    for folder, report in story.merges.items():
        blocks.append(Words(f"{folder}: kept {format_value(report.rule)}. {format_value(report.reason)}"))
        if report.models:
            marked = next((i for i, model in enumerate(report.models) if model.name == report.rule), None)
            rows = tuple(map(_merge_row, report.models))
            blocks.append(Table(MERGE_COLUMNS, rows, numeric=frozenset(range(2, 9)), marked=marked))
            blocks.append(
                Words("KL from the trained model in nats per token; the first row is what was trained.", "muted")
            )
        if report.notes:
            blocks.append(Bullets(report.notes))
        if report.extra:
            blocks.append(Folded("All of merge_report.json", (table_of(report.extra),)))
    return Section("Merge", blocks)


def _scores_table(scores: Sequence[ScoreRecord]) -> Table:
    metrics = list(dict.fromkeys(name for score in scores for name in score.metrics))
    rows = tuple(
        (
            format_value(score.model),
            format_value(score.prompts),
            format_loss(score.loss),
            format_score(score.perplexity),
            *(format_score(score.metrics.get(metric)) for metric in metrics),
            format_count(score.num_rows),
            count_answers(score.num_answers, score.num_cut_answers),
        )
        for score in scores
    )
    header = (*SCORE_COLUMNS, *metrics, "rows", "answered")
    return Table(header, rows, numeric=frozenset(range(2, len(header))))


def _details(scores: Sequence[ScoreRecord]) -> list[Block]:
    rows = [((format_value(score.model), format_value(score.prompts)), score.details) for score in scores]
    return show_details(rows, labels=("prompts",))


def _merge_row(model: MergedModel) -> tuple[str, ...]:
    return (
        format_value(model.name),
        format_value(model.dtype),
        format_loss(model.loss),
        "-" if model.loss_difference is None else f"{model.loss_difference:+.4f}",
        format_number(model.kl),
        format_share(model.token_agreement),
        format_share(model.answer_agreement),
        format_share(model.changed_share),
        format_bytes(model.num_bytes),
    )


def _comparisons(found: Sequence[Mapping[str, Any]], *, name: str) -> list[Block]:
    """A figure and a table for each pair of models and prompt set; tasks of the harness have no prompt set."""
    pairs: dict[tuple[str, ...], list[Comparison]] = defaultdict(list)
    notes: dict[tuple[str, ...], str] = {}
    for entry in found:
        try:
            comparison = Comparison.from_dict(dict(entry))
        except UNREADABLE:
            continue
        names = tuple(str(entry.get(key) or "") for key in ("prompts", "base_model", "tuned_model"))
        pairs[names].append(comparison)
        if entry.get("note"):
            notes[names] = str(entry["note"])
    blocks: list[Block] = []
    for number, (names, comparisons) in enumerate(pairs.items()):
        prompts, base, tuned = names
        blocks.append(Words(f"{tuned} against {base}{f', {prompts}' if prompts else ''}:"))
        blocks += show_comparisons(comparisons, name=f"{name}{number}", base=base, tuned=tuned)
        if names in notes:
            blocks.append(Words(f"Note: {notes[names]}.", "warn"))
    return blocks
