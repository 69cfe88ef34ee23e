"""What is known of how good a model is: the sweep's verdict, and every figure of the trial's own evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from qlora_ray.exporting.bundle_evaluation import ModelPair, read_pairs
from qlora_ray.exporting.merge.report import MergeReport
from qlora_ray.exporting.naming import EMBEDDED_TASK, shorten_dataset, shorten_datasets, shorten_source
from qlora_ray.exporting.selection import Selection
from qlora_ray.modeling.loading import EMBEDDED
from qlora_ray.runs.score_records import EvaluationRecord, ScoreRecord
from qlora_ray.scoring.details import describe_sampling, tabulate_details


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        name: The bundle's name.
        merge: The merge's report; None without a merged model.
        evaluation: evaluation.json of this trial; None if it was not evaluated by itself.
        ends: The tokens that end an answer, by id; empty where they are not known.
    """

    name: str
    selection: Selection
    merge: MergeReport | None
    evaluation: EvaluationRecord | None
    ends: Mapping[int, str] = field(default_factory=dict)


def verdict_sentences(facts: CardFacts) -> list[str]:
    """The verdict in a word and its figures: the sweep's, then every pair of the trial's own evaluation."""
    lines: list[str] = []
    verdict = facts.selection.verdict
    if verdict is not None:
        lines.append(f"**{verdict.word}** on the {verdict.split} rows: {verdict.deciding.sentence()}")
        lines += [f"{other.verdict}: {other.sentence()}" for other in verdict.others]
        lines += [f"Note: {verdict.note}"] if verdict.note else []
    pairs = _pairs(facts)
    for pair in pairs:
        names = f"{pair.tuned_model} against {pair.base_model}, {pair.prompts}"
        lines.append(f"{pair.comparison.verdict} ({names}): {pair.comparison.sentence()}")
    notes = [f"Note ({pair.tuned_model}, {pair.prompts}): {pair.note}" for pair in pairs if pair.note]
    return [*lines, *dict.fromkeys(notes)]


def score_rows(facts: CardFacts) -> list[ScoreRecord]:
    """One row per model and prompt set: of the trial's own evaluation, else of the sweep's end."""
    if facts.evaluation is not None:
        return list(facts.evaluation.scores)
    scores = facts.selection.scores
    if scores is None:
        return []
    prompts = f"0-shot, {_sweep_split(facts.selection)}"
    models = (("base", scores.base), ("adapter", scores.winner))
    return [replace(row, model=name, prompts=row.prompts or prompts) for name, row in models if row is not None]


def detail_tables(facts: CardFacts) -> list[list[list[str]]]:
    """A table for each metric that has further figures, such as the share of answers with a number."""
    rows = [((str(row.model), str(row.prompts)), row.details) for row in score_rows(facts)]
    return tabulate_details(rows, labels=("prompts",))


def describe_rows(facts: CardFacts) -> list[str]:
    """What the scores are over, how models were loaded and answers drawn, a sentence each; empty without scores."""
    scored = score_rows(facts)
    if not scored:
        return []
    found = rows_source(facts)
    source = f", from `{found.label}`" if found else ""
    if facts.evaluation is None:
        split, num_rows = _sweep_split(facts.selection), scored[0].num_rows
        return [
            f"Rows: {'all' if num_rows is None else num_rows} of {split}{source}, scored at the end of the sweep.",
            "base and adapter: loaded as the trial trained.",
            *_describe_answers(scored[-1].sampling),
        ]
    rows = facts.evaluation.rows
    reason = rows.reason or rows.split
    whose = "" if rows_are_the_sweeps(facts) else " These are not the rows of the sweep."
    lines = [f"Rows: {rows.num_rows} of {reason}{source}.{whose}"] if rows.split else []
    lines += [f"{name}: {how}." for name, how in facts.evaluation.models.items()]
    # Not of the scores: there older evaluations have none.
    return [*lines, *_describe_answers(facts.evaluation.settings.evaluate.sampling)]


def rows_are_the_sweeps(facts: CardFacts) -> bool:
    """Whether the scores are over rows of the sweep's own validation or test split."""
    if facts.evaluation is None:
        return bool(score_rows(facts))
    rows, notes = facts.evaluation.rows, facts.evaluation.notes
    own = facts.selection.data.fingerprint
    if own is not None and rows.fingerprint == own:
        return True
    # The fingerprint is of paths too: `evaluate` compares what is in the files, and writes down where they differ.
    differ = any(note.startswith(f"{rows.split} is not what the sweep had") for note in notes)
    return facts.evaluation.target.kind == "sweep" and rows.split is not None and not differ


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
        return facts.evaluation.rows.split
    return _sweep_split(facts.selection)


def find_source(selection: Selection, split: str) -> RowsSource | None:
    """Where a split of the sweep is from, without paths of this machine."""
    # The record is of what the trial trained with; the test rows stand in the manifest alone.
    sources = {**selection.data.sources, **selection.record.dataset.sources}
    source = sources.get(split)
    if source is None:
        return None
    if split == "validation" and source != sources.get("train", source) and sources["train"] in source:
        train = find_source(selection, "train")
        return replace(train, label=f"{train.label}, held out") if train else None
    if source.startswith(f"{EMBEDDED}/"):
        return RowsSource(source, EMBEDDED_TASK, EMBEDDED_TASK)
    here = selection.config.data
    # Without one of its own, or with a split's name, a split is of train's dataset.
    own = {"validation": here.validation, "test": here.test}.get(split)
    written = {part: selection.manifest.setting("data", part) for part in (split, "train")}
    if split == "train" and isinstance(here.train, list):
        words = shorten_datasets(written["train"])
        return RowsSource(words, words, words)
    for name, found in ((written[split], own), (written["train"], here.train)):
        # A hub id's rows are named by it and their split; a path begins with one of these.
        name = str(name or "").partition("[")[0]
        if name and source.startswith(f"{name} ") and not str(found).startswith(("/", ".", "~")):
            return RowsSource(source, name.partition(":")[0], shorten_dataset(name))
    return RowsSource(shorten_source(source), shorten_dataset(source), shorten_dataset(source))


def is_worse(facts: CardFacts) -> bool:
    """Whether any measure says that it is worse than its base."""
    verdict = facts.selection.verdict
    told = [verdict.deciding, *verdict.others] if verdict is not None else []
    told += [pair.comparison for pair in _pairs(facts) if pair.base_model == "base"]
    return any(comparison.verdict == "worse" for comparison in told)


def _describe_answers(sampling: Mapping[str, object]) -> list[str]:
    return [f"Answers: one per prompt, {describe_sampling(sampling)}."] if sampling else []


def _sweep_split(selection: Selection) -> str:
    return selection.verdict.split if selection.verdict is not None else "validation"


def _pairs(facts: CardFacts) -> list[ModelPair]:
    return read_pairs(facts.evaluation) if facts.evaluation is not None else []
