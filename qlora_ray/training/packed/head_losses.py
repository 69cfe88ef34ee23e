"""The losses of the auxiliary heads of all trials of a step.

A trial's heads lie in its flat row, behind its adapter: they are stacked as adapters are, and stepped, clipped and kept
with them. Each trial's own rows go through its own heads, so that no trial's NaN reaches another.

Shapes: B rows of a micro-batch, T tokens, D width, N labelled rows of one trial in it, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qlora_ray.modeling.auxiliary_heads import HeadRows, pool, sum_losses
from qlora_ray.training.packed.batching import StepRow
from qlora_ray.training.packed.trial import PackedTrial


class HeadLosses:
    """Goes back through the heads of a step's trials.

    Args:
        facts: Of the training rows.
    """

    def __init__(self, facts: HeadRows) -> None:
        self._facts = facts
        self._trials: Sequence[PackedTrial] = ()
        # Of each trial, by head: what a row's loss is multiplied with.
        self._shares: list[dict[str, float]] = []

    def begin(self, trials: Sequence[PackedTrial]) -> None:
        """Counts the labels of a step: each head's loss is a mean over the trial's whole effective batch."""
        self._trials = trials
        self._shares = [
            {
                head.name: head.weight
                * (trial.loss_scale.scale if trial.loss_scale else 1.0)
                / max(1, self._facts.count(head.name, trial.next_rows()))
                for head in trial.spec.heads
            }
            for trial in trials
        ]

    def go_back(self, hidden_BTD: Tensor, rows: Sequence[StepRow]) -> list[tuple[Tensor, Tensor]]:
        """Adds the gradients of the heads' matrices to their trials' rows of gradients.

        Args:
            hidden_BTD: The last hidden states of a micro-batch.
            rows: Its rows.

        Returns:
            For each head of each trial that has labels here, what was pooled, [N, D], and its gradient.
        """
        found = []
        for number, trial in enumerate(self._trials):
            own = [(at, row.row) for at, row in enumerate(rows) if row.trial == number]
            for head in trial.spec.heads:
                labels = self._facts.labels(head.name)
                labelled = [(at, row) for at, row in own if labels[row] >= 0]
                if not labelled:
                    continue
                places, numbers = zip(*labelled, strict=True)
                with torch.enable_grad():
                    pooled_ND = pool(hidden_BTD, places, numbers, self._facts, head.pooling)
                    leaf_ND = pooled_ND.detach().requires_grad_()
                    matrix_CD = trial.adapter.matrix(head.parameter_name).detach().requires_grad_()
                    loss = self._shares[number][head.name] * sum_losses(leaf_ND, matrix_CD, labels[list(numbers)])
                gradient_ND, gradient_CD = torch.autograd.grad(loss, (leaf_ND, matrix_CD))
                trial.stack.cut_matrix(trial.adapter.gradients_P, head.parameter_name).add_(gradient_CD)
                found.append((pooled_ND, gradient_ND))
        return found
