"""Whether an adapter is better than its base, and on which rows that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qlora_ray.scoring.comparison import Comparison, compare_scores, describe_silent, read_text
from qlora_ray.scoring.token_budget import LIMITS

if TYPE_CHECKING:
    from qlora_ray.scoring.metrics.metric import Metric
    from qlora_ray.scoring.scores import Scores


# Ours: fewer cut answers than one in twenty move no verdict that is not a matter of chance anyway.
NOTABLE_CUT_SHARE = 0.05

CHOSEN_ON_THEM = "the winner was chosen on these rows, which flatters it; name rows of their own with data.test"


@dataclass(frozen=True)
class Verdict:
    """An adapter against its base, row by row.

    Attributes:
        split: The rows both were scored on: test, or validation where there are no test rows.
        deciding: The comparison whose word is the verdict: the first metric that can tell, or the loss.
        others: The comparisons that do not decide.
        note: A sentence on what weakens the verdict; None if nothing does.
    """

    split: str
    deciding: Comparison
    others: list[Comparison]
    note: str | None = None

    @property
    def word(self) -> str:
        """`better`, `no different` or `worse`."""
        return self.deciding.verdict

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {
            "word": self.word,
            "split": self.split,
            "note": self.note,
            "deciding": self.deciding.to_dict(),
            "others": [comparison.to_dict() for comparison in self.others],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Verdict:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: A value is missing, or is none that `to_dict` writes.
        """
        others = [Comparison.from_dict(comparison) for comparison in values["others"]]
        note = values["note"]
        return cls(
            split=read_text(values["split"]),
            deciding=Comparison.from_dict(values["deciding"]),
            others=others,
            note=None if note is None else read_text(note),
        )


def judge(base: Scores, tuned: Scores, *, metrics: Sequence[Metric], split: str, was_chosen_on: bool) -> Verdict:
    """Returns the verdict on two models that were scored on the same rows.

    Args:
        base: The scores of the base.
        tuned: The scores of the adapter on the same rows.
        metrics: What answers were scored with, the deciding one first.
        split: The name of the split that the rows are of.
        was_chosen_on: Whether the adapter was picked by its scores on these rows.
    """
    deciding, *others = compare_scores(base, tuned, metrics=metrics)
    notes = [
        describe_silent([deciding, *others]),
        CHOSEN_ON_THEM if was_chosen_on else None,
        describe_cuts(base, tuned),
        *describe_limits(tuned),
    ]
    return Verdict(split, deciding, others, "; ".join(note for note in notes if note) or None)


def describe_cuts(
    base: Scores,
    tuned: Scores,
    *,
    base_name: str = "base",
    tuned_name: str = "the winner",
    has_references: bool = True,
) -> str | None:
    """Returns a note where cut answers weaken a comparison; None where they do not.

    A base that never stops is cut always. That matters only where references are longer than an answer may be: then no
    model could give them. Without references nothing says how long an answer should be.

    Args:
        base: The scores of the base.
        tuned: The tuned model's scores.
        base_name: What the base is called in the note.
        tuned_name: What the tuned model is called in it.
        has_references: Whether the rows have references.
    """
    if not tuned.answers:
        return None
    num_long = tuned.num_long_references
    shares = [scores.num_cut_answers / max(len(scores.answers), 1) for scores in (base, tuned)]
    if shares[1] < NOTABLE_CUT_SHARE and not (num_long and shares[0] >= NOTABLE_CUT_SHARE):
        return None
    told = (
        f"{tuned.num_cut_answers} of {len(tuned.answers)} answers of {tuned_name} were cut at "
        f"{tuned.max_new_tokens} tokens{' or fewer' if tuned.num_short_answers else ''} "
        f"({base_name}: {base.num_cut_answers})"
    )
    if num_long:
        return f"{told}, and {num_long} references are longer: raise evaluate.max_new_tokens"
    if tuned.num_short_answers < tuned.num_cut_answers:
        if not has_references:
            return f"{told}: raise evaluate.max_new_tokens if they should have ended"
        return f"{told}, though no reference is longer: it did not stop by itself"
    return told


def describe_limits(scores: Scores) -> list[str]:
    """Returns a note on cut prompts and one on short answers, where a model has any."""
    notes = []
    if scores.num_cut_prompts:
        notes.append(f"{scores.num_cut_prompts} prompts lost their beginning, for lack of room ({LIMITS})")
    if scores.num_short_answers:
        notes.append(f"{scores.num_short_answers} answers had fewer tokens to spend, for lack of room ({LIMITS})")
    return notes
