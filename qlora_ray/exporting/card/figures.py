"""What is known of how good a model is: the sweep's verdict, and every figure of the trial's own evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qlora_ray.exporting.merge.report import MergeReport
from qlora_ray.exporting.naming import EMBEDDED_TASK, shorten_dataset, shorten_source
from qlora_ray.exporting.selection import Selection
from qlora_ray.modeling.loading import EMBEDDED
from qlora_ray.scoring.comparison import Comparison
from qlora_ray.scoring.details import describe_sampling, tabulate_details
from qlora_ray.scoring.verdict import Verdict


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
    lines: list[str] = []
    written = _sweep_verdict(facts.selection)
    if written:
        verdict = Verdict.from_dict(written)
        lines.append(f"**{verdict.word}** on the {verdict.split} rows: {verdict.deciding.sentence()}")
        lines += [f"{other.verdict}: {other.sentence()}" for other in verdict.others]
        lines += [f"Note: {verdict.note}"] if verdict.note else []
    for values in _comparisons(facts):
        comparison = Comparison.from_dict(values)
        pair = f"{values['tuned_model']} against {values['base_model']}, {values['prompts']}"
        lines.append(f"{comparison.verdict} ({pair}): {comparison.sentence()}")
    notes = {
        f"Note ({values['tuned_model']}, {values['prompts']}): {values['note']}": None
        for values in _comparisons(facts)
        if values.get("note")
    }
    return [*lines, *notes]


def score_rows(facts: CardFacts) -> list[dict[str, Any]]:
    """One row per model and prompt set: of the trial's own evaluation, else of the sweep's end."""
    if facts.evaluation:
        return [{"metrics": {}, **row} for row in facts.evaluation["scores"]]
    scores = facts.selection.scores
    if not scores:
        return []
    split = _sweep_split(facts.selection)
    names = (("base", "base"), ("winner", "adapter"))
    return [{"prompts": f"0-shot, {split}", **scores[key], "model": name} for key, name in names if scores.get(key)]


def detail_tables(facts: CardFacts) -> list[list[list[str]]]:
    """A table for each metric that has further figures, such as the share of answers with a number."""
    rows = [((str(row["model"]), str(row["prompts"])), row.get("details") or {}) for row in score_rows(facts)]
    return tabulate_details(rows, labels=("prompts",))


def describe_rows(facts: CardFacts) -> list[str]:
    """What the scores are over, how models were loaded and answers drawn, a sentence each; empty without scores."""
    scored = score_rows(facts)
    if not scored:
        return []
    found = rows_source(facts)
    source = f", from `{found.label}`" if found else ""
    if facts.evaluation is None:
        split = _sweep_split(facts.selection)
        return [
            f"Rows: {scored[0].get('num_rows', 'all')} of {split}{source}, scored at the end of the sweep.",
            "base and adapter: loaded as the trial trained.",
            *_describe_answers(scored[-1].get("sampling")),
        ]
    rows = facts.evaluation.get("rows") or {}
    reason = rows.get("reason") or f"{rows.get('split')}"
    whose = "" if rows_are_the_sweeps(facts) else " These are not the rows of the sweep."
    lines = [f"Rows: {rows.get('num_rows')} of {reason}{source}.{whose}"] if rows.get("split") else []
    lines += [f"{name}: {how}." for name, how in (facts.evaluation.get("models") or {}).items()]
    # Not of the scores: there older evaluations have none.
    asked = (facts.evaluation.get("settings") or {}).get("evaluate") or {}
    return [*lines, *_describe_answers(asked.get("sampling"))]


def rows_are_the_sweeps(facts: CardFacts) -> bool:
    """Whether the scores are over rows of the sweep's own validation or test split."""
    if facts.evaluation is None:
        return bool(score_rows(facts))
    rows = facts.evaluation.get("rows") or {}
    own = facts.selection.data.fingerprint
    if own is not None and rows.get("fingerprint") == own:
        return True
    # The fingerprint is of paths too: `evaluate` compares what is in the files, and writes down where they differ.
    differ = any(str(note).startswith(f"{rows.get('split')} is not what the sweep had") for note in _notes(facts))
    is_sweep = (facts.evaluation.get("target") or {}).get("kind") == "sweep"
    return is_sweep and rows.get("split") is not None and not differ


@dataclass(frozen=True)
class RowsSource:
    """Where rows are from.

    Attributes:
        label: A file's name, or a hub id with its split, to read.
        dataset: Hub id, else the file's or task's name in a word.
        name: The dataset in a word.
    """

    label: str
    dataset: str
    name: str


def rows_source(facts: CardFacts) -> RowsSource | None:
    """Where the scored rows are from; None where that is not written down."""
    if facts.evaluation is None or rows_are_the_sweeps(facts):
        return find_source(facts.selection, rows_split(facts) or "")
    return None


def rows_split(facts: CardFacts) -> str | None:
    """The split that the scores are over."""
    if facts.evaluation is not None:
        return (facts.evaluation.get("rows") or {}).get("split")
    return _sweep_split(facts.selection)


def find_source(selection: Selection, split: str) -> RowsSource | None:
    """Where a split of the sweep is from, without paths of this machine."""
    # The record is of what the trial trained with; the test rows stand in the manifest alone.
    sources = {**selection.data.sources, **selection.record.dataset.sources}
    source = sources.get(split)
    if source is None:
        return None
    if split == "validation" and source != sources["train"] and sources["train"] in source:
        train = find_source(selection, "train")
        return replace(train, label=f"{train.label}, held out") if train else None
    if source.startswith(f"{EMBEDDED}/"):
        return RowsSource(source, EMBEDDED_TASK, EMBEDDED_TASK)
    here = selection.config.data
    # Without one of its own, or with a split's name, a split is of train's dataset.
    own = {"validation": here.validation, "test": here.test}.get(split)
    written = {part: selection.manifest.setting("data", part) for part in (split, "train")}
    for name, found in ((written[split], own), (written["train"], here.train)):
        # A hub id's rows are named by it and their split; a path begins with one of these.
        if name and source.startswith(f"{name} ") and not str(found).startswith(("/", ".", "~")):
            return RowsSource(source, name.partition(":")[0], shorten_dataset(name))
    return RowsSource(shorten_source(source), shorten_dataset(source), shorten_dataset(source))


def is_worse(facts: CardFacts) -> bool:
    """Whether any measure says that it is worse than its base."""
    verdict = _sweep_verdict(facts.selection)
    told = [verdict["deciding"], *verdict["others"]] if verdict else []
    told += [comparison for comparison in _comparisons(facts) if comparison["base_model"] == "base"]
    return any(comparison["verdict"] == "worse" for comparison in told)


def _describe_answers(sampling: dict[str, Any] | None) -> list[str]:
    return [f"Answers: one per prompt, {describe_sampling(sampling)}."] if sampling else []


def _sweep_verdict(selection: Selection) -> dict[str, Any] | None:
    """The verdict at the end of the sweep; None for another trial, and for sweeps of before there were verdicts."""
    verdict = (selection.scores or {}).get("verdict")
    return verdict if isinstance(verdict, dict) else None


def _sweep_split(selection: Selection) -> str:
    return str((_sweep_verdict(selection) or {"split": "validation"})["split"])


def _notes(facts: CardFacts) -> list[str]:
    return list((facts.evaluation or {}).get("notes", []))


def _comparisons(facts: CardFacts) -> list[dict[str, Any]]:
    return list((facts.evaluation or {}).get("comparisons", []))
