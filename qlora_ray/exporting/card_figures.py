"""What is known of how good a model is: the sweep's verdict, and every figure of the trial's own evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlora_ray.evaluation.comparison import Comparison
from qlora_ray.evaluation.verdict import Verdict
from qlora_ray.exporting.merge_report import MergeReport
from qlora_ray.exporting.selection import Selection


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        name: The bundle's name.
        merge: The merge's report; None without a merged model.
        evaluation: evaluation.json of this trial; None if it was not evaluated by itself.
    """

    name: str
    selection: Selection
    merge: MergeReport | None
    evaluation: dict[str, Any] | None


def verdict_sentences(facts: CardFacts) -> list[str]:
    """The verdict in a word and its figures: the sweep's, then every pair of the trial's own evaluation."""
    lines = []
    written = _sweep_verdict(facts.selection)
    if written:
        verdict = Verdict.from_dict(written)
        lines.append(f"**{verdict.word}** on the {verdict.split} rows: {verdict.deciding.sentence()}")
        lines += [f"{other.verdict}: {other.sentence()}" for other in verdict.others]
        lines += [f"Note: {verdict.note}"] if verdict.note else []
    for one in _comparisons(facts):
        comparison = Comparison.from_dict(one)
        pair = f"{one['tuned_model']} against {one['base_model']}, {one['prompts']}"
        lines.append(f"{comparison.verdict} ({pair}): {comparison.sentence()}")
    return lines


def score_rows(facts: CardFacts) -> list[dict[str, Any]]:
    """One row per model and prompt set: of the trial's own evaluation, else of the sweep's end."""
    if facts.evaluation:
        return [{"metrics": {}, **row} for row in facts.evaluation["scores"]]
    scores = facts.selection.scores
    if not scores:
        return []
    split = (_sweep_verdict(facts.selection) or {"split": "validation"})["split"]
    names = (("base", "base"), ("winner", "adapter"))
    return [{"prompts": f"0-shot, {split}", **scores[key], "model": name} for key, name in names if scores.get(key)]


def is_worse(facts: CardFacts) -> bool:
    """Whether any measure says that it is worse than its base."""
    verdict = _sweep_verdict(facts.selection)
    told = [verdict["deciding"], *verdict["others"]] if verdict else []
    told += [one for one in _comparisons(facts) if one["base_model"] == "base"]
    return any(one["verdict"] == "worse" for one in told)


def _sweep_verdict(selection: Selection) -> dict[str, Any] | None:
    """The verdict at the end of the sweep; None for another trial, and for sweeps of before there were verdicts."""
    verdict = (selection.scores or {}).get("verdict")
    return verdict if isinstance(verdict, dict) else None


def _comparisons(facts: CardFacts) -> list[dict[str, Any]]:
    return list((facts.evaluation or {}).get("comparisons", []))
