"""What weakens an evaluation's figures: rows the winner was chosen on, other rows than the sweep's, cut prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlora_ray.config.schema import Data
from qlora_ray.data import PreparedData, TokenizedSplit
from qlora_ray.evaluation.prompting import PromptSet
from qlora_ray.evaluation.subjects import Subject
from qlora_ray.evaluation.verdict import CHOSEN_ON_THEM


def note_weaknesses(
    subject: Subject,
    prepared: PreparedData,
    split: TokenizedSplit | None,
    sets: Sequence[PromptSet],
    limited: dict[str, tuple[int, int]],
) -> list[str]:
    """Returns what weakens the figures, a sentence each.

    Args:
        subject: What is evaluated.
        prepared: The splits.
        split: The one that is asked; None: none.
        sets: What is asked.
        limited: By set: how many prompts are cut, and how many answers are short of tokens.
    """
    notes = []
    if split is not None and subject.manifest is None and subject.config.data == Data():
        notes.append("the rows are the embedded task's: no sweep or --config names others")
    written = (subject.manifest or {}).get("data")
    if written is not None and split is not None and not _is_same(written, prepared, split.name):
        notes.append(f"{split.name} is not what the sweep had: its rows, template or tokenizer differ")
    elif split is not None and split.name == "validation" and _was_chosen_on(subject, prepared):
        notes.append(CHOSEN_ON_THEM)
    for one in sets:
        cut, short = limited[one.name]
        if one.num_dropped_shots:
            notes.append(f"{one.name}: {one.num_dropped_shots} examples in all were left out for lack of positions")
        if cut:
            notes.append(f"{one.name}: {cut} prompts were longer than the model's positions and lost their beginning")
        if short:
            notes.append(f"{one.name}: {short} answers had fewer tokens to spend, for lack of positions")
    return notes


def _was_chosen_on(subject: Subject, prepared: PreparedData) -> bool:
    """Whether the adapter is of a sweep with these rows: by the manifest, which was held against them, or its record.

    A record has the fingerprint only: of rows, template and tokenizer in one.
    """
    if subject.manifest is not None:
        return "data" in subject.manifest
    fingerprint = ((subject.record or {}).get("dataset") or {}).get("fingerprint")
    return subject.trial is not None and fingerprint in (None, prepared.report.fingerprint)


def _is_same(written: dict[str, Any], prepared: PreparedData, split: str) -> bool:
    """Whether the rows are the sweep's: by fingerprint, else by their source's bytes, template and token counts."""
    report = prepared.report.to_dict()
    if written["fingerprint"] == report["fingerprint"]:
        return True
    keys = ("digests", "num_rows", "num_tokens", "num_completion_tokens")
    same_counts = all(written[key].get(split) == report[key].get(split) for key in keys)
    return same_counts and written["template"] == report["template"]
