"""One model on one split: its loss, its answers, and every metric of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Evaluate, Precision
from qlora_ray.scoring.decoding import Finish
from qlora_ray.scoring.early_end import make_early_end
from qlora_ray.scoring.generation import Answers, generate_answers_of
from qlora_ray.scoring.inference import Route, one_model, pad_token_of
from qlora_ray.scoring.loss import evaluate_loss
from qlora_ray.scoring.metrics.metric import Metric, measure
from qlora_ray.scoring.progress import NoProgress, RowProgress
from qlora_ray.scoring.sampling import Sampling, choose_sampling
from qlora_ray.scoring.split import EvaluationSplit
from qlora_ray.scoring.token_budget import TokenBudget, count_reference_tokens, resolve_max_new_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer beside what was expected.

    Attributes:
        row: Its index in the split.
        finish: How it ended, as in `generation.Answer`; None where that is not known.
    """

    row: int
    answer: str
    reference: str
    finish: Finish | None = None


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
            "row_metrics": {name: [_finite(score) for score in row] for name, row in self.row_metrics.items()},
            "answers": [
                {
                    "row": answer.row,
                    "answer": answer.answer,
                    "reference": answer.reference,
                    "finish": answer.finish,
                }
                for answer in self.answers
            ],
        }


def score_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    split: EvaluationSplit,
    *,
    metrics: Sequence[Metric],
    evaluate: Evaluate,
    precision: Precision,
    loss_batch_size: int,
    name: str = "the model",
    progress: RowProgress | None = None,
) -> Scores:
    """Returns the scores of one model; arguments and errors as those of `score_models`."""
    scores = score_models(
        model,
        tokenizer,
        split,
        names=[name],
        route=one_model,
        metrics=metrics,
        evaluate=evaluate,
        precision=precision,
        loss_batch_size=loss_batch_size,
        progress=progress,
    )
    return scores[name]


def score_models(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    split: EvaluationSplit,
    *,
    names: Sequence[str],
    route: Route,
    metrics: Sequence[Metric],
    evaluate: Evaluate,
    precision: Precision,
    loss_batch_size: int,
    progress: RowProgress | None = None,
) -> dict[str, Scores]:
    """Returns the loss over the whole split and the metrics over its first `evaluate.max_rows` rows, for each model.

    All models answer in the same batches: a step of generation costs little more for more rows. Losses are measured one
    model after another, since a batch of whole rows is as much work as its rows are.

    Without metrics nothing is generated. An answer whose score is settled is ended early, see `early_end`.

    Args:
        model: A causal LM of transformers, or a PEFT model around one: what all models share.
        tokenizer: The tokenizer of the model.
        split: The rows that the models are scored on.
        names: What each model is called.
        route: Gives rows to the models, by their places in `names`.
        metrics: What scores the answers, the deciding one first.
        evaluate: How answers are generated, and of how many rows.
        precision: The data type that the model computes in.
        loss_batch_size: Rows of a micro-batch of the loss.
        progress: Is told of the rows as they are done.

    Raises:
        DataError: no token counts in the loss, a prompt is empty, or a reference query does not run.
        ModelError: the tokenizer has neither a pad nor an end token.
    """
    progress = progress or NoProgress()
    losses = []
    for number, name in enumerate(names):
        progress.begin(f"loss of {name} on {split.name}", sum(any(mask[1:]) for mask in split.completion_mask))
        with route([number]):
            losses.append(
                evaluate_loss(
                    model,
                    split,
                    batch_size=loss_batch_size,
                    pad_token_id=pad_token_of(tokenizer),
                    precision=precision,
                    on_rows=progress.add,
                )
            )
    num_answers = len(split.prompt_ids[: evaluate.max_rows]) if metrics else 0
    answers = [Answers([], [], num_cut_prompts=0, num_short_answers=0)] * len(names)
    budget, sampling = TokenBudget(max_new_tokens=0), choose_sampling(evaluate)
    references = split.references[:num_answers]
    if num_answers:
        progress.begin(f"answers of {' and '.join(names)} on {split.name}", num_answers * len(names))
        # `auto` is of all rows, as in an evaluation, where more of them may be answered later.
        reference_tokens = count_reference_tokens(split, tokenizer=tokenizer)
        max_new_tokens = resolve_max_new_tokens(evaluate.max_new_tokens, reference_tokens)
        answers = generate_answers_of(
            model,
            tokenizer,
            split.prompt_ids[:num_answers],
            num_models=len(names),
            max_new_tokens=max_new_tokens,
            batch_size=evaluate.batch_size,
            precision=precision,
            route=route,
            sampling=sampling,
            max_length=evaluate.max_length,
            early_end=make_early_end(metrics, references, tokenizer=tokenizer, is_greedy=sampling is None),
            on_rows=progress.add,
        )
        budget = TokenBudget(
            max_new_tokens=max_new_tokens,
            num_cut_prompts=answers[0].num_cut_prompts,
            num_short_answers=answers[0].num_short_answers,
            num_long_references=sum(num > max_new_tokens for num in reference_tokens[:num_answers]),
        )
    return {
        name: make_scores(
            [
                ScoredAnswer(row, *answered)
                for row, answered in enumerate(zip(own.texts, references, own.finishes, strict=True))
            ],
            row_nll=loss.row_nll,
            row_tokens=loss.row_tokens,
            metrics=metrics,
            budget=budget,
            sampling=sampling,
        )
        for name, own, loss in zip(names, answers, losses, strict=True)
    }


def make_scores(
    answers: list[ScoredAnswer],
    *,
    row_nll: list[float],
    row_tokens: list[int],
    metrics: Sequence[Metric],
    budget: TokenBudget,
    sampling: Sampling | None,
) -> Scores:
    """Returns the scores that rows of a split add up to.

    Args:
        answers: Of the split's first rows; the metrics are measured on them.
        row_nll: As in `Scores`; the loss is their sum over all tokens, NaN where there are none.
        row_tokens: The trained tokens of each row.
        metrics: What the answers are measured by.
        budget: What the answered rows had room for.
        sampling: How answers were drawn; None: greedily.

    Raises:
        ConfigError: If a metric of the user's own fails.
        DataError: If a reference cannot be scored against.
    """
    texts, references = [answer.answer for answer in answers], [answer.reference for answer in answers]
    measured = {metric.name: measure(metric, texts, references) for metric in metrics}
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
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
