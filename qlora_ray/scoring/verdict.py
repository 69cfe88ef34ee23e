"""Whether an adapter is better than its base, and on which rows that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qlora_ray.scoring.comparison import Comparison, compare_scores
from qlora_ray.scoring.token_budget import describe_cuts, describe_limits

if TYPE_CHECKING:
    from qlora_ray.scoring.metrics.choice import Metric
    from qlora_ray.scoring.scores import Scores

CHOSEN_ON_THEM = "the winner was chosen on these rows, which flatters it; name rows of their own with data.test"


@dataclass(frozen=True)
class Verdict:
    """An adapter against its base, row by row.

    Attributes:
        split: The rows both were scored on: test, or validation where there are no test rows.
        deciding: The comparison whose word is the verdict: the first metric, or the loss where nothing is answered.
        others: What else was measured.
        note: What weakens the verdict, in words; None if nothing does.
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
            "others": [one.to_dict() for one in self.others],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Verdict:
        """The inverse of `to_dict`."""
        others = [Comparison.from_dict(one) for one in values["others"]]
        return cls(values["split"], Comparison.from_dict(values["deciding"]), others, values["note"])


def judge(base: Scores, tuned: Scores, *, metrics: Sequence[Metric], split: str, was_chosen_on: bool) -> Verdict:
    """Returns the verdict on two models that were scored on the same rows.

    Args:
        base: The base's scores.
        tuned: The adapter's.
        metrics: What answers were scored with, the deciding one first.
        split: What the rows are called.
        was_chosen_on: Whether the adapter was picked by its scores on these rows.
    """
    deciding, *others = compare_scores(base, tuned, metrics=metrics)
    notes = [CHOSEN_ON_THEM if was_chosen_on else None, describe_cuts(base, tuned), *describe_limits(tuned)]
    return Verdict(split, deciding, others, "; ".join(note for note in notes if note) or None)
