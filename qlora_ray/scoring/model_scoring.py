"""Models of one base on one split: their losses and answers, in as few passes over the rows as can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Evaluate, Precision
from qlora_ray.modeling.auxiliary_heads import TrainedHead
from qlora_ray.scoring.early_end import make_early_end
from qlora_ray.scoring.generation import Answers, generate_answers_of
from qlora_ray.scoring.heads import HeadScorer
from qlora_ray.scoring.inference import Route, one_model, pad_token_of
from qlora_ray.scoring.loss import evaluate_loss
from qlora_ray.scoring.metrics.metric import Metric
from qlora_ray.scoring.progress import NoProgress, RowProgress
from qlora_ray.scoring.sampling import choose_sampling
from qlora_ray.scoring.scores import ScoredAnswer, Scores, make_scores
from qlora_ray.scoring.split import EvaluationSplit
from qlora_ray.scoring.token_budget import TokenBudget, count_reference_tokens, resolve_max_new_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    heads: Sequence[TrainedHead] = (),
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
        heads={name: heads},
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
    heads: Mapping[str, Sequence[TrainedHead]] | None = None,
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
        heads: Auxiliary heads by the name of the model that they are of: scored on the rows that have labels.
        progress: Is told of the rows as they are done.

    Raises:
        DataError: no token counts in the loss, a prompt is empty, or a reference query does not run.
        ModelError: the tokenizer has neither a pad nor an end token.
    """
    progress = progress or NoProgress()
    losses = []
    scorers = {name: HeadScorer((heads or {}).get(name, ()), split) for name in names}
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
                    on_hidden=scorers[name].observe if (heads or {}).get(name) else None,
                )
            )
    num_answers = len(split.prompt_ids[: evaluate.max_rows]) if metrics else 0
    answers = [Answers([], [], num_cut_prompts=0, num_short_answers=0)] * len(names)
    budget, sampling = TokenBudget(max_new_tokens=0), choose_sampling(evaluate)
    references, alternatives = split.references[:num_answers], split.alternatives[:num_answers]
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
            early_end=make_early_end(
                metrics, references, alternatives=alternatives, tokenizer=tokenizer, is_greedy=sampling is None
            ),
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
                ScoredAnswer(row, text, reference, finish, tuple(others))
                for row, (text, reference, finish, others) in enumerate(
                    zip(own.texts, references, own.finishes, alternatives, strict=True)
                )
            ],
            row_nll=loss.row_nll,
            row_tokens=loss.row_tokens,
            metrics=metrics,
            budget=budget,
            sampling=sampling,
            heads=scorers[name].scores(),
        )
        for name, own, loss in zip(names, answers, losses, strict=True)
    }
