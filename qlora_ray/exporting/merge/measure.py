"""How far a model is from the one that was trained: KL, loss, and greedy tokens on the same rows.

One model is in memory at a time: the trained model's log-probabilities lie in files, a row each.

Shapes: N measured positions of a row, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from qlora_ray.config.schema import Precision
from qlora_ray.errors import DataError, ModelError
from qlora_ray.exporting.merge.report import MeasuredModel
from qlora_ray.modeling.heads import SplitModel
from qlora_ray.scoring.early_end import EarlyEnd
from qlora_ray.scoring.generation import generate_answers_of
from qlora_ray.scoring.inference import evaluating, input_device, pad_token_of
from qlora_ray.scoring.loss import evaluate_loss
from qlora_ray.scoring.split import EvaluationSplit

# Ours: what decides between two merges is far larger than the noise of so many rows, and a 7B model answers them
# in a minute on a small GPU.
MAX_ROWS = 64
MAX_POSITIONS_PER_ROW = 64
NUM_ANSWERS = 16
MAX_ANSWER_TOKENS = 64
BATCH_SIZE = 8
# Ours: the trained model's log-probabilities on disk. At 150 k tokens in the vocabulary, 3,500 positions.
MAX_REFERENCE_BYTES = 2 * 2**30
BYTES_PER_LOGIT = 4


@dataclass(frozen=True)
class MeasuredRows:
    """The held-out rows that all models are measured on; a `LossSplit`.

    Attributes:
        positions: For each row, the indices of the measured answer tokens in `input_ids`.
        num_answers: Of the first rows with a prompt, how many are answered greedily.
    """

    name: str
    input_ids: list[list[int]]
    completion_mask: list[list[int]]
    prompt_ids: list[list[int]]
    references: list[str]
    positions: list[list[int]]
    num_answers: int
    vocab_size: int

    @property
    def num_positions(self) -> int:
        """Answer tokens whose distributions are compared."""
        return sum(map(len, self.positions))

    @property
    def reference_bytes(self) -> int:
        """Bytes of the trained model's log-probabilities on disk."""
        return self.num_positions * self.vocab_size * BYTES_PER_LOGIT


def choose_rows(split: EvaluationSplit, *, vocab_size: int) -> MeasuredRows:
    """The split's first rows with an answer, as far as they and their log-probabilities fit the bounds above.

    Raises:
        DataError: If no row has an answer.
    """
    limit = max(1, MAX_REFERENCE_BYTES // (vocab_size * BYTES_PER_LOGIT))
    rows, positions, total = [], [], 0
    for row, mask in enumerate(split.completion_mask):
        answer = [at for at in range(1, len(mask)) if mask[at]][: min(MAX_POSITIONS_PER_ROW, limit - total)]
        if answer:
            rows.append(row)
            positions.append(answer)
            total += len(answer)
        if len(rows) == MAX_ROWS or total == limit:
            break
    if not rows:
        raise DataError(
            f"merge: {split.name} must have a row with an answer to measure the merge on, got none. "
            "Check the answers, and data.max_length."
        )
    return MeasuredRows(
        name=split.name,
        input_ids=[list(split.input_ids[row]) for row in rows],
        completion_mask=[list(split.completion_mask[row]) for row in rows],
        prompt_ids=[list(split.prompt_ids[row]) for row in rows if split.prompt_ids[row]],
        references=[split.references[row] for row in rows],
        positions=positions,
        num_answers=min(NUM_ANSWERS, sum(bool(split.prompt_ids[row]) for row in rows)),
        vocab_size=vocab_size,
    )


@dataclass(frozen=True)
class Runner:
    """A model to measure, with what it is run with.

    Attributes:
        model: A causal LM, or a PEFT model around one.
        precision: What it computes in.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    precision: Precision

    def log_probs(self, rows: MeasuredRows, row: int) -> Tensor:
        """Float32 log-probabilities of the tokens at a row's measured positions, [N, V]."""
        causal = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        try:
            split: SplitModel | None = SplitModel(causal)
        except ValueError:
            split = None
        before = [at - 1 for at in rows.positions[row]]
        ids_BT = torch.tensor([rows.input_ids[row][: before[-1] + 1]], device=input_device(causal))
        with evaluating(self.model, precision=self.precision):
            if split is None:
                logits_NV = causal(input_ids=ids_BT, use_cache=False).logits[0, before]
            else:
                # The head sees the measured positions alone: logits of a whole row can outweigh the model.
                logits_NV = split.logits(split.hidden(ids_BT)[0, before])
        return logits_NV.float().log_softmax(-1)

    def loss(self, rows: MeasuredRows) -> float:
        """The rows' loss, nats per token."""
        # Rows are padded on the right, so any token will do.
        result = evaluate_loss(
            self.model, rows, batch_size=BATCH_SIZE, pad_token_id=pad_token_of(self.tokenizer), precision=self.precision
        )
        return result.loss

    def answers(self, rows: MeasuredRows, *, expected: list[str] | None = None) -> list[str]:
        """Greedy answers to the first prompts.

        Args:
            expected: What each is held against: one that has become another is ended, for no more need be known of it.
        """
        if not rows.num_answers:
            return []
        early_end = None
        if expected is not None:
            early_end = EarlyEnd([_SameAnswer()], expected, tokenizer=self.tokenizer, finds_loops=False)
        [answers] = generate_answers_of(
            self.model,
            self.tokenizer,
            rows.prompt_ids[: rows.num_answers],
            num_models=1,
            max_new_tokens=MAX_ANSWER_TOKENS,
            # One batch: a step of generation costs little more for more rows.
            batch_size=rows.num_answers,
            precision=self.precision,
            early_end=early_end,
        )
        return answers.texts


class _SameAnswer:
    """Whether an answer is another one, word for word; it can become that and not become the same again."""

    settles_in_loops = False

    def is_settled(self, prediction: str, reference: str) -> bool:
        return not reference.startswith(prediction)


@dataclass(frozen=True)
class Reference:
    """What the trained model said: its figures and greedy answers; its log-probabilities lie in `folder`."""

    model: MeasuredModel
    answers: list[str]
    rows: MeasuredRows
    folder: Path


def measure_reference(runner: Runner, rows: MeasuredRows, *, name: str, dtype: str, folder: Path) -> Reference:
    """Measures the trained model, and keeps what others are held against.

    Args:
        runner: The quantized base with the adapter on it.
        rows: The held-out rows that all models are measured on.
        name: The model's name in reports.
        dtype: What its weights are in.
        folder: Takes one file of log-probabilities per row.

    Raises:
        ModelError: If it answers with what is no number: nothing could be held against it.
    """
    for row in range(len(rows.positions)):
        log_probs_NV = runner.log_probs(rows, row).cpu()
        if log_probs_NV.isnan().any():
            raise ModelError(
                f"merge: {name} must give numbers, got NaN on a row of {rows.name}. Its training diverged, or "
                f"{runner.precision} does not hold its values: choose another trial, or export without merging."
            )
        save_file({"log_probs": log_probs_NV}, folder / f"{row}.safetensors")
    agreement = 1.0 if rows.num_answers else None
    model = MeasuredModel(name, runner.loss(rows), 0.0, 0.0, 1.0, agreement, dtype)
    return Reference(model, runner.answers(rows), rows, folder)


def measure_model(runner: Runner, reference: Reference, *, name: str, dtype: str) -> MeasuredModel:
    """How far a model is from the reference on its rows; KL and loss are NaN where its outputs are.

    Args:
        runner: The merged model, ready to be run.
        reference: What the trained model said on the same rows.
        name: The model's name in reports.
        dtype: What its weights are in.
    """
    kls: list[float] = []
    num_same = 0
    for row in range(len(reference.rows.positions)):
        found_NV = runner.log_probs(reference.rows, row)
        expected_NV = load_file(reference.folder / f"{row}.safetensors")["log_probs"].to(found_NV.device)
        kls.extend(kl_divergence(expected_NV, found_NV).tolist())
        num_same += int((expected_NV.argmax(-1) == found_NV.argmax(-1)).sum())
    loss = runner.loss(reference.rows)
    answers = runner.answers(reference.rows, expected=reference.answers)
    num_equal = sum(answer == other for answer, other in zip(answers, reference.answers, strict=True))
    return MeasuredModel(
        name=name,
        loss=loss,
        loss_difference=loss - reference.model.loss,
        kl=math.fsum(kls) / len(kls),
        token_agreement=num_same / len(kls),
        answer_agreement=num_equal / len(answers) if answers else None,
        dtype=dtype,
    )


def kl_divergence(expected_NV: Tensor, found_NV: Tensor) -> Tensor:
    """KL(expected || found) of each position in nats, [N], from log-probabilities.

    Rounding can leave a hair below 0 where both are the same; that is 0. NaN in either stays NaN.
    """
    terms_NV = expected_NV.exp().double() * (expected_NV.double() - found_NV.double())
    # A token that the first cannot say adds nothing, whatever the other makes of it: 0 times infinity is no number.
    adds_nothing_NV = expected_NV.isneginf() & ~found_NV.isnan()
    return terms_NV.masked_fill(adds_nothing_NV, 0.0).sum(-1).clamp(min=0.0)
