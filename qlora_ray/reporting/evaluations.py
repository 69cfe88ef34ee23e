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
from qlora_ray.reporting.trials import as_list, as_mapping, as_number
from qlora_ray.reporting.verdicts import show_comparisons, show_details, show_sampling
from qlora_ray.scoring.comparison import Comparison
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
# What a merge report says in words elsewhere in its section.
MERGE_WORDS = ("rule", "reason", "models", "notes")


def tell_evaluation(story: Story) -> Section | None:
    """Base, adapter and merged on the same rows; None if there is no evaluation."""
    evaluation = story.evaluation
    if not evaluation:
        return None
    scores = [as_mapping(one) for one in as_list(evaluation.get("scores"))]
    on = as_mapping(evaluation.get("rows"))
    rows_of = " ".join(format_value(on[key]) for key in ("num_rows", "split") if on.get(key) is not None)
    trial = as_mapping(evaluation.get("target")).get("trial")
    of = f" of trial {trial}" if trial else ""
    reason = f" {on['reason']}." if on.get("reason") else ""
    blocks: list[Block] = [
        Words(f"By python -m qlora_ray.evaluate{of}, on {rows_of or 'its'} rows.{reason}"),
        _scores_table(scores),
        *_details(scores),
        # Not of the scores: there older evaluations have none.
        *show_sampling(as_mapping(as_mapping(evaluation.get("settings")).get("evaluate")).get("sampling")),
        *_comparisons(as_list(evaluation.get("comparisons")), name="evaluation"),
    ]
    tasks, exports = (as_mapping(evaluation.get(key)) for key in ("lm_eval", "exports"))
    task_comparisons = _comparisons(as_list(tasks.get("comparisons")), name="lm_eval")
    if task_comparisons:
        blocks += [Words("Tasks of the lm-evaluation-harness, paired by row:"), *task_comparisons]
    warnings = tuple(map(format_value, [*as_list(evaluation.get("notes")), *as_list(exports.get("warnings"))]))
    if warnings:
        blocks += [Words("To know of these figures:", "warn"), Bullets(warnings, "warn")]
    for title, values, shown_above in (
        ("How the models were loaded", as_mapping(evaluation.get("models")), ()),
        ("Answers, as exported", exports, ("warnings",)),
        ("lm-evaluation-harness", tasks, ("comparisons", "lines")),
    ):
        rest = {key: value for key, value in values.items() if key not in shown_above}
        if rest:
            blocks.append(Folded(title, (table_of(rest),)))
    return Section("Evaluation", blocks)


def tell_merges(story: Story) -> Section | None:
    """Each merge's figures; None if nothing was merged."""
    if not story.merges:
        return None
    blocks: list[Block] = []
    for folder, report in story.merges.items():
        rule, reason = report.get("rule"), report.get("reason")
        blocks.append(Words(f"{folder}: kept {format_value(rule)}. {format_value(reason)}"))
        models = [as_mapping(one) for one in as_list(report.get("models"))]
        if models:
            marked = next((i for i, one in enumerate(models) if one.get("name") == rule), None)
            rows = tuple(_merge_row(one) for one in models)
            blocks.append(Table(MERGE_COLUMNS, rows, numeric=frozenset(range(2, 9)), marked=marked))
            blocks.append(
                Words("KL from the trained model in nats per token; the first row is what was trained.", "muted")
            )
        notes = tuple(str(note) for note in as_list(report.get("notes")))
        if notes:
            blocks.append(Bullets(notes))
        rest = {key: value for key, value in report.items() if key not in MERGE_WORDS}
        if rest:
            blocks.append(Folded("All of merge_report.json", (table_of(rest),)))
    return Section("Merge", blocks)


def _scores_table(scores: Sequence[Mapping[str, Any]]) -> Table:
    metrics = list(dict.fromkeys(name for one in scores for name in as_mapping(one.get("metrics"))))
    rows = tuple(
        (
            format_value(one.get("model")),
            format_value(one.get("prompts")),
            format_loss(as_number(one.get("loss"))),
            format_score(as_number(one.get("perplexity"))),
            *(format_score(as_number(as_mapping(one.get("metrics")).get(metric))) for metric in metrics),
            format_count(as_number(one.get("num_rows"))),
            count_answers(as_number(one.get("num_answers")), as_number(one.get("num_cut_answers"))),
        )
        for one in scores
    )
    header = (*SCORE_COLUMNS, *metrics, "rows", "answered")
    return Table(header, rows, numeric=frozenset(range(2, len(header))))


def _details(scores: Sequence[Mapping[str, Any]]) -> list[Block]:
    rows = [((format_value(one.get("model")), format_value(one.get("prompts"))), one.get("details")) for one in scores]
    return show_details(rows, labels=("prompts",))


def _merge_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    difference = as_number(one.get("loss_difference"))
    return (
        format_value(one.get("name")),
        format_value(one.get("dtype")),
        format_loss(as_number(one.get("loss"))),
        "-" if difference is None else f"{difference:+.4f}",
        format_number(as_number(one.get("kl"))),
        format_share(as_number(one.get("token_agreement"))),
        format_share(as_number(one.get("answer_agreement"))),
        format_share(as_number(one.get("changed_share"))),
        format_bytes(as_number(one.get("num_bytes"))),
    )


def _comparisons(found: list[Any], *, name: str) -> list[Block]:
    """A figure and a table for each pair of models and prompt set; tasks of the harness have no prompt set."""
    pairs: dict[tuple[str, ...], list[Comparison]] = defaultdict(list)
    notes: dict[tuple[str, ...], str] = {}
    for one in map(as_mapping, found):
        try:
            comparison = Comparison.from_dict(dict(one))
        except (KeyError, TypeError, ValueError):
            continue
        names = tuple(str(one.get(key) or "") for key in ("prompts", "base_model", "tuned_model"))
        pairs[names].append(comparison)
        if one.get("note"):
            notes[names] = str(one["note"])
    blocks: list[Block] = []
    for number, (names, comparisons) in enumerate(pairs.items()):
        prompts, base, tuned = names
        blocks.append(Words(f"{tuned} against {base}{f', {prompts}' if prompts else ''}:"))
        blocks += show_comparisons(comparisons, name=f"{name}{number}", base=base, tuned=tuned)
        if names in notes:
            blocks.append(Words(f"Note: {notes[names]}.", "warn"))
    return blocks
