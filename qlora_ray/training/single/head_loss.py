"""What auxiliary heads add to SFTTrainer's loss, from the hidden states that its own forward makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qlora_ray.modeling.auxiliary_heads import HeadRows, TrainedHead, pool, sum_losses

if TYPE_CHECKING:
    from peft import PeftModel


class HeadLoss:
    """The heads' part of the loss, micro-batch by micro-batch.

    Rows come in the trial's order, so that the rows of a micro-batch are known by their place in it: labels need not
    pass through the trainer's collator.

    Args:
        heads: The trial's, whose matrices are parameters of the model.
        facts: Of the training rows.
        rows: The rows that the trainer sees, in its order.
        effective_batch: Rows of one optimizer step.
    """

    def __init__(
        self, heads: Sequence[TrainedHead], facts: HeadRows, *, rows: Sequence[int], effective_batch: int
    ) -> None:
        self._heads = heads
        self._facts = facts
        self._rows = rows
        self._batch = effective_batch
        self._num_steps = self._num_seen = 0
        self._hidden_BTD: Tensor | None = None
        self._parts: list[Tensor] = []

    @contextmanager
    def watching(self, model: PeftModel) -> Iterator[None]:
        """Keeps the last hidden states that the model's body makes in the block."""
        causal: Any = model.get_base_model()

        def keep(module: Any, arguments: Any, output: Any) -> None:
            self._hidden_BTD = output.last_hidden_state

        handle = causal.get_decoder().register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()
            self._hidden_BTD = None

    def take(self, num_rows: int) -> Tensor:
        """The part of the micro-batch that has just gone forward; see `TrialSpec` for the whole formula.

        Args:
            num_rows: Rows of it.
        """
        assert self._hidden_BTD is not None, "the model's body has not run"
        first = self._num_steps * self._batch
        step_rows = self._rows[first : first + self._batch]
        rows = step_rows[self._num_seen : self._num_seen + num_rows]
        self._num_seen += num_rows
        total = torch.zeros((), device=self._hidden_BTD.device)
        for head in self._heads:
            # Without labels its gradient is zero and not none: AdamW then steps it by its moments, as in a pack.
            total = total + 0.0 * head.weight_CD.sum()
            labels = self._facts.labels(head.spec.name)
            at = [place for place, row in enumerate(rows) if labels[row] >= 0]
            if at:
                labelled = [rows[place] for place in at]
                pooled_ND = pool(self._hidden_BTD, at, labelled, self._facts, head.spec.pooling)
                share = head.spec.weight / self._facts.count(head.spec.name, step_rows)
                total = total + share * sum_losses(pooled_ND, head.weight_CD, labels[labelled])
        self._parts.append(total.detach())
        return total

    def end_step(self) -> float:
        """After an optimizer step: what the heads added to its loss."""
        loss = torch.stack(self._parts).sum().item()
        self._parts.clear()
        self._num_steps, self._num_seen = self._num_steps + 1, 0
        return loss
