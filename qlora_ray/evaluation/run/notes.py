"""What weakens an evaluation's figures: rows the winner was chosen on, rows not the sweep's, what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlora_ray.config.schema import Data
from qlora_ray.data import PreparedData, TokenizedSplit
from qlora_ray.evaluation.prompt_sets.sets import PromptSet
from qlora_ray.evaluation.target.target import Target
from qlora_ray.runs.record_parts import DataRecord
from qlora_ray.scoring.token_budget import LIMITS, TokenBudget
from qlora_ray.scoring.verdict import CHOSEN_ON_THEM

# An adapter that was copied without its record knows its trial and not that trial's rows.
MAYBE_CHOSEN_ON_THEM = "no record says whether the adapter was chosen on these rows"


def note_weaknesses(
    target: Target,
    prepared: PreparedData,
    split: TokenizedSplit | None,
    sets: Sequence[PromptSet],
    limited: Mapping[str, TokenBudget],
) -> list[str]:
    """Returns what weakens the figures, a sentence each.

    Args:
        target: The sweep, adapter, bundle or model that is evaluated.
        prepared: The tokenized train, validation and test rows.
        split: The split whose rows are asked; None: none.
        sets: The prompt sets, of the split and of files.
        limited: The token budget of each set.
    """
    notes = []
    if split is not None and target.manifest is None and target.config.data == Data():
        notes.append("the rows are the embedded task's: no sweep or --config names others")
    written = target.manifest.data if target.manifest is not None else None
    if written is not None and split is not None and not _is_same(written, prepared, split.name):
        notes.append(f"{split.name} is not what the sweep had: its rows, template or tokenizer differ")
    elif split is not None and split.name == "validation":
        notes += _note_choice(target, prepared)
    for prompts in sets:
        if prompts.num_dropped_shots:
            notes.append(
                f"{prompts.name}: {prompts.num_dropped_shots} examples in all were left out for lack of room ({LIMITS})"
            )
        notes += limited[prompts.name].notes(prompts.name)
    return notes


def _note_choice(target: Target, prepared: PreparedData) -> list[str]:
    """Whether a sweep chose the adapter on these rows: by the manifest, which was held against them, or its record.

    A record has the fingerprint only: of rows, template and tokenizer in one.
    """
    if target.manifest is not None:
        return [CHOSEN_ON_THEM] if target.manifest.data is not None else []
    if target.trial is None:
        return []
    if target.record is None:
        return [MAYBE_CHOSEN_ON_THEM]
    return [CHOSEN_ON_THEM] if target.record.dataset.fingerprint in (None, prepared.report.fingerprint) else []


def _is_same(written: DataRecord, prepared: PreparedData, split: str) -> bool:
    """Whether the rows are the sweep's: by fingerprint, else by their source's bytes, template and token counts."""
    report = prepared.report
    if written.fingerprint == report.fingerprint:
        return True
    keys = ("digests", "num_rows", "num_tokens", "num_completion_tokens")
    same_counts = all(getattr(written, key).get(split) == getattr(report, key).get(split) for key in keys)
    return same_counts and written.template == report.template
