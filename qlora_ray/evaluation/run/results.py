"""What an evaluation found: every figure as JSON, and as tables to read."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_ray.evaluation.prompt_sets.sets import PromptSet
from qlora_ray.evaluation.run.answer_log import AnswerLog
from qlora_ray.formats import format_loss, format_score, format_table
from qlora_ray.modeling.auxiliary_heads import HeadRows, TrainedHead
from qlora_ray.pages.markdown import write_table
from qlora_ray.scoring.comparison import Comparison, compare_scores, describe_silent
from qlora_ray.scoring.details import (
    bracket_details,
    count_answers,
    describe_details,
    tabulate_details,
    tabulate_heads,
)
from qlora_ray.scoring.heads import score_answers
from qlora_ray.scoring.metrics.metric import Metric
from qlora_ray.scoring.sampling import Sampling
from qlora_ray.scoring.scores import ScoredAnswer, Scores, make_scores
from qlora_ray.scoring.token_budget import TokenBudget
from qlora_ray.scoring.verdict import describe_cuts

PAIRS = (("base", "adapter"), ("base", "merged"), ("adapter", "merged"))
# Losses from here on have a perplexity that is no float.
MAX_EXPONENT = math.log(sys.float_info.max)


@dataclass(frozen=True)
class Score:
    """One model on one prompt set."""

    model: str
    prompts: PromptSet
    scores: Scores

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures without rows and answers, which lie in the answer log."""
        values = self.scores.to_dict()
        for key in ("answers", "row_metrics"):
            values.pop(key)
        loss = self.scores.loss
        return {
            "model": self.model,
            "prompts": self.prompts.name,
            "perplexity": math.exp(loss) if loss < MAX_EXPONENT else None,
            "num_dropped_shots": self.prompts.num_dropped_shots,
            **values,
        }


@dataclass(frozen=True)
class Pair:
    """Two models on one prompt set, the deciding comparison first; `note` says what weakens it."""

    prompts: str
    base: str
    tuned: str
    comparisons: list[Comparison]
    note: str | None = None


@dataclass(frozen=True)
class Findings:
    """All scores and comparisons of an evaluation."""

    scores: list[Score]
    pairs: list[Pair] = field(default_factory=list)

    def deciding(self) -> Comparison | None:
        """The comparison that says whether tuning helped: base and adapter (else merged) on the first prompt set."""
        return next((pair.comparisons[0] for pair in self.pairs if pair.base == "base"), None)

    def to_dict(self) -> dict[str, Any]:
        """The `verdict`, `scores` and `comparisons` of evaluation.json."""
        deciding = self.deciding()
        return {
            "verdict": None if deciding is None else deciding.verdict,
            "scores": [score.to_dict() for score in self.scores],
            "comparisons": [
                {
                    "prompts": pair.prompts,
                    "base_model": pair.base,
                    "tuned_model": pair.tuned,
                    "note": pair.note,
                    **compared.to_dict(),
                }
                for pair in self.pairs
                for compared in pair.comparisons
            ],
        }


def collect_findings(
    answer_log: AnswerLog,
    models: Sequence[str],
    sets: Sequence[PromptSet],
    *,
    metrics: Mapping[str, Sequence[Metric]],
    limited: Mapping[str, TokenBudget],
    sampling: Sampling | None = None,
    heads: Sequence[TrainedHead] = (),
) -> Findings:
    """Scores what is in the answer log.

    Args:
        metrics: The metrics that score each prompt set, by its name.
        limited: The token budget of each prompt set.
        sampling: How answers were drawn; None: greedily.
        heads: The adapter's auxiliary heads.

    Raises:
        DataError: If a reference cannot be scored against.
    """

    def read(model: str, prompts: PromptSet) -> Scores:
        scored_by, budget = metrics[prompts.name], limited[prompts.name]
        return read_scores(
            answer_log, model, prompts, metrics=scored_by, limited=budget, sampling=sampling, heads=heads
        )

    scores = [Score(model, prompts, read(model, prompts)) for prompts in sets for model in models]
    found = {(score.model, score.prompts.name): score.scores for score in scores}
    pairs = []
    for prompts in sets:
        for base, tuned in PAIRS:
            is_scored = prompts.has_references or metrics[prompts.name]
            if is_scored and base in models and tuned in models:
                both = found[base, prompts.name], found[tuned, prompts.name]
                compared = compare_scores(*both, metrics=metrics[prompts.name])
                note = describe_cuts(*both, base_name=base, tuned_name=tuned, has_references=prompts.has_references)
                notes = [words for words in (describe_silent(compared), note) if words]
                pairs.append(Pair(prompts.name, base, tuned, compared, "; ".join(notes) or None))
    return Findings(scores, pairs)


def read_scores(
    answer_log: AnswerLog,
    model: str,
    prompts: PromptSet,
    *,
    metrics: Sequence[Metric],
    limited: TokenBudget,
    sampling: Sampling | None = None,
    heads: Sequence[TrainedHead] = (),
) -> Scores:
    """Returns a model's scores on a set, from its rows on disk.

    Args:
        limited: The token budget of the set.
        sampling: How answers were drawn; None: greedily.
        heads: The adapter's auxiliary heads, which the base was not asked.

    Raises:
        ConfigError: If a metric of the user's own fails.
        DataError: If a reference cannot be scored against.
    """
    losses = answer_log.read_losses(model, prompts.name)
    answers = answer_log.read_answers(model, prompts.name)
    num_rows = len(prompts.rows) if prompts.has_references else 0
    row_nll = [losses[row][0] for row in range(num_rows)]
    row_tokens = [losses[row][1] for row in range(num_rows)]
    references = prompts.rows.references if prompts.has_references else [""] * len(prompts.rows)
    scored = [
        ScoredAnswer(
            row, answers[row]["answer"], references[row], answers[row].get("finish"), prompts.rows.alternatives[row]
        )
        for row in range(prompts.num_answered)
    ]
    return make_scores(
        scored,
        row_nll=row_nll,
        row_tokens=row_tokens,
        metrics=metrics,
        budget=limited,
        sampling=sampling,
        heads=score_answers(heads, HeadRows(prompts.rows), answer_log.read_heads(model, prompts.name)),
    )


def describe_score(score: Score) -> str:
    """Returns a score in a line: `loss 1.0866, perplexity 2.964, exact_match 0.048`."""
    values = score.to_dict()
    parts = [] if values["loss"] is None else [f"loss {format_loss(values['loss'])}"]
    parts += [] if values["perplexity"] is None else [f"perplexity {format_score(values['perplexity'])}"]
    for name, value in values["metrics"].items():
        parts.append(f"{name} {format_score(value)}{bracket_details(values['details'].get(name, {}))}")
    return ", ".join(parts)


def format_scores(findings: Findings) -> str:
    """Returns a table of models and prompt sets, and one of each metric's further figures."""
    tables = [_score_cells(findings), *_detail_cells(findings), *_head_cells(findings)]
    return "\n\n".join(format_table(rows, right=tuple(range(2, len(rows[0])))) for rows in tables)


def _detail_cells(findings: Findings) -> list[list[list[str]]]:
    found = [((score.model, score.prompts.name), score.to_dict()["details"]) for score in findings.scores]
    return tabulate_details(found, labels=("prompts",))


def _head_cells(findings: Findings) -> list[list[list[str]]]:
    """The table of auxiliary heads, its header first; none where there are no heads."""
    found = [((score.model, score.prompts.name), score.scores.heads) for score in findings.scores]
    table = tabulate_heads(found, labels=("prompts",))
    return [table] if table else []


def _score_cells(findings: Findings) -> list[list[str]]:
    """Returns the table of models and prompt sets, its header first."""
    names = list(dict.fromkeys(name for score in findings.scores for name in score.scores.metrics))
    rows = [["model", "prompts", "loss", "perplexity", *names, "answers"]]
    for score in findings.scores:
        values = score.to_dict()
        rows.append(
            [
                score.model,
                score.prompts.name,
                format_loss(values["loss"]),
                format_score(values["perplexity"]),
                *(format_score(values["metrics"].get(name)) for name in names),
                count_answers(values["num_answers"], values["num_cut_answers"]),
            ]
        )
    return rows


def format_pairs(findings: Findings) -> list[str]:
    """Returns a heading per pair of models and prompt set, and a line per comparison below it."""
    lines = []
    for pair in findings.pairs:
        lines.append(f"{pair.base} -> {pair.tuned}, {pair.prompts}: {pair.comparisons[0].verdict}")
        lines += [f"  {compared.verdict:12}  {compared.sentence()}" for compared in pair.comparisons]
        lines += [f"  note: {pair.note}"] if pair.note else []
    return lines


def render_markdown(evaluation: Mapping[str, Any], findings: Findings) -> str:
    """Returns evaluation.md: the same as the console shows, with how each model was loaded and what to know."""
    rows = evaluation["rows"]
    parts = [
        f"# Evaluation of {evaluation['target']['name']}",
        f"Rows: {rows['split'] or 'none'}, {rows['num_rows']} ({rows['reason']}).",
        "\n".join(f"- {name}: {how}" for name, how in evaluation["models"].items()),
        "## Scores",
        _markdown_table(_score_cells(findings)),
        "Loss in nats per token of the last answer; perplexity is exp(loss).",
    ]
    drawn = next((score.scores.sampling for score in findings.scores if score.scores.answers), None)
    parts += [f"Answers: one per prompt, {drawn}."] if drawn is not None else []
    details = _detail_cells(findings)
    parts += [*map(_markdown_table, details), *describe_details(details)]
    parts += [*map(_markdown_table, _head_cells(findings))]
    if findings.pairs:
        parts += ["## Comparisons", "\n".join(_markdown_pair(pair) for pair in findings.pairs)]
    tasks = evaluation.get("lm_eval", {}).get("lines", [])
    if tasks:
        parts += ["## lm-evaluation-harness", "\n".join(f"- {line}" for line in tasks)]
    notes = evaluation["notes"]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    return write_table(rows, right=range(2, len(rows[0])))


def _markdown_pair(pair: Pair) -> str:
    lines = [f"- {pair.base} -> {pair.tuned}, {pair.prompts}: **{pair.comparisons[0].verdict}**"]
    lines += [f"  - {compared.verdict}: {compared.sentence()}" for compared in pair.comparisons]
    return "\n".join([*lines, *([f"  - note: {pair.note}"] if pair.note else [])])
