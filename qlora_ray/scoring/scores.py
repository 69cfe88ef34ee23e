"""What a model is worth on one split: its loss, its answers, and every metric of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_ray.scoring.decoding import Finish
from qlora_ray.scoring.heads import HeadScores
from qlora_ray.scoring.metrics.metric import Metric, measure
from qlora_ray.scoring.sampling import Sampling
from qlora_ray.scoring.token_budget import TokenBudget


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer beside what was expected.

    Attributes:
        row: Its index in the split.
        finish: How it ended, as in `generation.Answer`; None where that is not known.
        alternatives: Other answers that would be as right as the reference.
    """

    row: int
    answer: str
    reference: str
    finish: Finish | None = None
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scores:
    """What a model is worth on a split.

    Attributes:
        loss: Mean over `num_tokens` trained tokens of `num_rows` rows: the whole split.
        metrics: Value by metric: the mean over the answered rows that have a score, unless the metric says otherwise.
        row_metrics: Score of each answered row by metric, NaN where it has none, in the order of `answers`: two
            models that answered the same split can be compared in pairs.
        answers: The split's first rows, as many as `evaluate.max_rows` allows.
        row_nll: Summed negative log-likelihood of each row of the split, in nats; 0 where it has no trained token.
        row_tokens: The trained tokens of each row.
        details: Further figures of the metrics that have some, by metric and name.
        num_cut_prompts: Prompts too long for the model or `evaluate.max_length`: the model saw their end only.
        num_short_answers: Answers that had fewer than `max_new_tokens` tokens to spend.
        num_cut_answers: Answers that ended because their tokens were spent.
        num_settled_answers: Answers that were ended early, since nothing could change their scores any more.
        num_looping_answers: Answers that were ended early, since they repeated themselves.
        num_long_references: Of the answered rows, those whose reference is longer than `max_new_tokens`.
        max_new_tokens: Tokens that an answer could have; None where nothing was asked.
        sampling: How answers were drawn; None: greedily.
        heads: What each auxiliary head is worth, by name; empty without heads, or without labels.
    """

    loss: float
    num_tokens: int
    num_rows: int
    metrics: dict[str, float]
    row_metrics: dict[str, list[float]]
    answers: list[ScoredAnswer]
    num_cut_prompts: int
    num_short_answers: int
    row_nll: list[float] = field(default_factory=list)
    row_tokens: list[int] = field(default_factory=list)
    details: dict[str, dict[str, float]] = field(default_factory=dict)
    num_cut_answers: int = 0
    num_settled_answers: int = 0
    num_looping_answers: int = 0
    num_long_references: int = 0
    max_new_tokens: int | None = None
    sampling: Sampling | None = None
    heads: Mapping[str, HeadScores] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns what `json.dumps` takes and any JSON reader reads; a number that is not finite becomes None."""
        return {
            "loss": _finite(self.loss),
            "num_tokens": self.num_tokens,
            "num_rows": self.num_rows,
            "num_answers": len(self.answers),
            "num_cut_prompts": self.num_cut_prompts,
            "num_short_answers": self.num_short_answers,
            "num_cut_answers": self.num_cut_answers,
            "num_settled_answers": self.num_settled_answers,
            "num_looping_answers": self.num_looping_answers,
            "num_long_references": self.num_long_references,
            "max_new_tokens": self.max_new_tokens,
            "sampling": self.sampling.to_dict() if self.sampling is not None else None,
            "metrics": {name: _finite(mean) for name, mean in self.metrics.items()},
            "details": {
                name: {key: _finite(figure) for key, figure in figures.items()}
                for name, figures in self.details.items()
            },
            **({"heads": {name: head.to_dict() for name, head in self.heads.items()}} if self.heads else {}),
            "row_metrics": {name: [_finite(score) for score in row] for name, row in self.row_metrics.items()},
            "answers": [
                {
                    "row": answer.row,
                    "answer": answer.answer,
                    "reference": answer.reference,
                    "finish": answer.finish,
                    **({"alternatives": list(answer.alternatives)} if answer.alternatives else {}),
                }
                for answer in self.answers
            ],
        }


def make_scores(
    answers: list[ScoredAnswer],
    *,
    row_nll: list[float],
    row_tokens: list[int],
    metrics: Sequence[Metric],
    budget: TokenBudget,
    sampling: Sampling | None,
    heads: Mapping[str, HeadScores] | None = None,
) -> Scores:
    """Returns the scores that rows of a split add up to.

    Args:
        answers: Of the split's first rows; the metrics are measured on them.
        row_nll: As in `Scores`; the loss is their sum over all tokens, NaN where there are none.
        row_tokens: The trained tokens of each row.
        metrics: What the answers are measured by.
        budget: What the answered rows had room for.
        sampling: How answers were drawn; None: greedily.
        heads: What each auxiliary head is worth.

    Raises:
        ConfigError: If a metric of the user's own fails.
        DataError: If a reference cannot be scored against.
    """
    texts, references = [answer.answer for answer in answers], [answer.reference for answer in answers]
    alternatives = [answer.alternatives for answer in answers]
    measured = {metric.name: measure(metric, texts, references, alternatives) for metric in metrics}
    num_tokens = sum(row_tokens)
    finishes = Counter(answer.finish for answer in answers)
    return Scores(
        loss=math.fsum(row_nll) / num_tokens if num_tokens else math.nan,
        num_tokens=num_tokens,
        num_rows=sum(tokens > 0 for tokens in row_tokens),
        metrics={name: found.value for name, found in measured.items()},
        row_metrics={name: found.row_scores for name, found in measured.items()},
        answers=answers,
        num_cut_prompts=budget.num_cut_prompts,
        num_short_answers=budget.num_short_answers,
        row_nll=row_nll,
        row_tokens=row_tokens,
        details={name: found.details for name, found in measured.items() if found.details},
        num_cut_answers=finishes["length"],
        num_settled_answers=finishes["settled"],
        num_looping_answers=finishes["loop"],
        num_long_references=budget.num_long_references,
        max_new_tokens=budget.max_new_tokens if answers else None,
        sampling=sampling,
        heads=heads or {},
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
