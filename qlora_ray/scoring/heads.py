"""What auxiliary heads are worth on a split: accuracy, macro F1 and loss over the rows that have a label.

They are asked while the split's loss is measured, of the same hidden states: they cost no pass of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qlora_ray.modeling.auxiliary_heads import HeadRows, LabelledSplit, TrainedHead, pool, score_classes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

# Metrics of a report that are a head's begin so.
METRIC_PREFIX = "heads."
# The number of the class that a head finds most likely, and the cross-entropy of the right one.
Answer = tuple[int, float]


@dataclass(frozen=True)
class HeadScores:
    """What one head is worth.

    Attributes:
        accuracy: Share of rows whose class is found.
        macro_f1: Mean over the classes that are in labels or answers of each one's F1.
        loss: Mean cross-entropy, in nats per row.
        majority: Share of the rows that are of the most frequent class: the accuracy of always saying that one.
        num_rows: Rows with a label.
        class_f1: F1 by class; those that are neither in labels nor in answers are left out.
    """

    accuracy: float
    macro_f1: float
    loss: float
    majority: float
    num_rows: int
    class_f1: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "class_f1": dict(self.class_f1)}


def score_head(
    labels: NDArray[np.int32], answers: NDArray[np.int32], *, losses: NDArray[np.float64], classes: Sequence[str]
) -> HeadScores:
    """The scores of answers to labelled rows.

    Macro F1 is scikit-learn's `f1_score(labels, answers, average="macro", zero_division=0)`.

    Args:
        labels: The number of each row's class.
        answers: That of the class that the head finds most likely.
        losses: Each row's cross-entropy.
        classes: Their names.
    """
    present = np.union1d(labels, answers)
    f1 = {}
    for number in present.tolist():
        true_positives = int(((labels == number) & (answers == number)).sum())
        f1[classes[number]] = 2 * true_positives / int((labels == number).sum() + (answers == number).sum())
    return HeadScores(
        accuracy=float((labels == answers).mean()),
        macro_f1=sum(f1.values()) / len(f1),
        loss=float(losses.mean()),
        majority=float(np.bincount(labels).max() / len(labels)),
        num_rows=len(labels),
        class_f1=f1,
    )


def score_answers(
    heads: Sequence[TrainedHead], facts: HeadRows, found: Mapping[str, Mapping[int, Answer]]
) -> dict[str, HeadScores]:
    """Each head's scores over the rows that it answered; heads without any are left out.

    Args:
        heads: Of one model.
        facts: Has the rows' labels.
        found: By head and row, as `HeadScorer.found`.
    """
    scores = {}
    for head in heads:
        answers = found.get(head.spec.name)
        if answers:
            rows = sorted(answers)
            scores[head.spec.name] = score_head(
                facts.labels(head.spec.name)[rows],
                np.array([answers[row][0] for row in rows], dtype=np.int32),
                losses=np.array([answers[row][1] for row in rows]),
                classes=head.spec.classes,
            )
    return scores


class HeadScorer:
    """Keeps what heads answer to rows while they pass by.

    Args:
        heads: Of one model.
        split: The rows; heads that it has no labels for are not scored.
    """

    def __init__(self, heads: Sequence[TrainedHead], split: object) -> None:
        self._facts = HeadRows(split) if isinstance(split, LabelledSplit) else None
        self._heads = list(heads) if self._facts is not None else []
        # By head and row: the class that was found, and the loss. A batch that is tried again is found again.
        self._found: dict[str, dict[int, Answer]] = {head.spec.name: {} for head in self._heads}

    def observe(self, rows: Sequence[int], hidden_BTD: Tensor) -> None:
        """Asks the heads about a batch.

        Args:
            rows: Numbers of its rows in the split.
            hidden_BTD: Their last hidden states, padded on the right.
        """
        import torch

        for head in self._heads:
            assert self._facts is not None
            labels = self._facts.labels(head.spec.name)
            at = [place for place, row in enumerate(rows) if labels[row] >= 0]
            if not at:
                continue
            asked = [rows[place] for place in at]
            pooled_ND = pool(hidden_BTD, at, asked, self._facts, head.spec.pooling)
            log_NC = torch.log_softmax(score_classes(pooled_ND, head.weight_CD.to(pooled_ND.device)), dim=-1).cpu()
            losses_N = -log_NC[range(len(at)), labels[asked].tolist()]
            for row, answer, loss in zip(asked, log_NC.argmax(-1).tolist(), losses_N.tolist(), strict=True):
                self._found[head.spec.name][row] = (answer, loss)

    @property
    def found(self) -> Mapping[str, Mapping[int, Answer]]:
        """What each head answered to each labelled row that has passed by."""
        return self._found

    def scores(self) -> dict[str, HeadScores]:
        """By head, its scores over all rows that it was asked about; those without any are left out."""
        return {} if self._facts is None else score_answers(self._heads, self._facts, self._found)

    def metrics(self) -> dict[str, float]:
        """What a report says of the heads: `heads.emotion.accuracy` and so on."""
        return {
            f"{METRIC_PREFIX}{name}.{key}": value
            for name, found in self.scores().items()
            for key, value in (("accuracy", found.accuracy), ("macro_f1", found.macro_f1), ("loss", found.loss))
        }
