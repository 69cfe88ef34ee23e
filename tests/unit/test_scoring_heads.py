"""What heads are worth: accuracy and macro F1 by their formulas, and rows as they pass by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qlora_ray.data import TokenizedSplit
from qlora_ray.modeling.auxiliary_heads import HeadRows, HeadSpec, TrainedHead, pool
from qlora_ray.scoring.heads import HeadScorer, score_head

CLASSES = ("a", "b", "c", "d")


def score(labels: list[int], answers: list[int]):
    zeros = np.zeros(len(labels))
    return score_head(np.array(labels, np.int32), np.array(answers, np.int32), losses=zeros, classes=CLASSES)


def test_macro_f1_is_the_mean_over_the_classes_of_labels_and_answers():
    # scikit-learn 1.9.1 gives 0.2916666 for them: f1_score(..., average="macro", zero_division=0).
    found = score([0, 0, 0, 1, 1, 3], [0, 0, 1, 1, 2, 0])
    # a: precision 2/3, recall 2/3. b: 1/2 and 1/2. c is answered and never right, d is never answered.
    assert found.class_f1 == pytest.approx({"a": 2 / 3, "b": 1 / 2, "c": 0, "d": 0})
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 / 2) / 4)
    assert found.accuracy == pytest.approx(3 / 6)
    assert found.majority == pytest.approx(3 / 6)
    assert found.num_rows == 6


def test_macro_f1_is_that_of_precision_and_recall_of_each_class():
    generator = np.random.default_rng(1)
    labels, answers = generator.integers(0, 4, 200), generator.integers(0, 4, 200)
    f1 = []
    for number in range(4):
        hits = sum(one == other == number for one, other in zip(labels, answers, strict=True))
        precision, recall = hits / (answers == number).sum(), hits / (labels == number).sum()
        f1.append(2 * precision * recall / (precision + recall))
    assert score(labels.tolist(), answers.tolist()).macro_f1 == pytest.approx(np.mean(f1))


def test_a_class_that_is_in_neither_labels_nor_answers_is_left_out():
    found = score([0, 1, 0], [0, 1, 0])
    assert (found.accuracy, found.macro_f1, list(found.class_f1)) == (1.0, 1.0, ["a", "b"])


def split() -> TokenizedSplit:
    """Rows of 3, 2 and 4 tokens with prompts of 2, 1 and 6; the last one was cut inside its prompt."""
    return TokenizedSplit.of(
        "validation",
        [[1, 2, 3], [4, 5], [6, 7, 8, 9]],
        [[0, 0, 1], [0, 1], [0, 1, 0, 0]],
        [[1, 2], [4], [6, 7, 8, 9, 10, 11]],
        ["x", "y", "z"],
        labels={"mood": [1, -1, 0]},
    )


@pytest.mark.parametrize(
    ("pooling", "expected"), [("prompt", [[2.0], [3.0]]), ("last", [[3.0], [3.0]]), ("mean", [[2.0], [1.5]])]
)
def test_what_a_head_reads_of_a_row(pooling, expected):
    # Places count from 1 in the first row, from 0 in the second; what is behind a row is no number.
    hidden_BTD = torch.tensor([[1.0, 2.0, 3.0, math.nan], [0.0, 1.0, 2.0, 3.0]])[..., None]
    assert pool(hidden_BTD, [0, 1], [0, 2], HeadRows(split()), pooling).tolist() == expected


def test_rows_without_a_label_are_not_asked_and_a_batch_that_comes_again_counts_once():
    head = TrainedHead(HeadSpec("mood", "mood", ("sad", "glad"), "last"), torch.tensor([[1.0], [-1.0]]))
    scorer = HeadScorer([head], split())
    hidden_BTD = torch.full((3, 4, 1), 0.5)
    scorer.observe([2, 0, 1], hidden_BTD)
    scorer.observe([2, 0], hidden_BTD[:2])
    found = scorer.scores()["mood"]
    likely, unlikely = math.exp(0.5), math.exp(-0.5)
    assert found.num_rows == 2
    assert found.accuracy == 0.5
    assert found.loss == pytest.approx(
        -(math.log(likely / (likely + unlikely)) + math.log(unlikely / (likely + unlikely))) / 2
    )
    assert scorer.metrics()["heads.mood.accuracy"] == 0.5


def test_a_head_that_the_rows_have_no_labels_for_has_no_scores():
    head = TrainedHead(HeadSpec("act", "act", ("ask", "tell"), "last"), torch.zeros(2, 1))
    scorer = HeadScorer([head], split())
    scorer.observe([0, 1, 2], torch.zeros(3, 4, 1))
    assert (scorer.scores(), scorer.metrics()) == ({}, {})
