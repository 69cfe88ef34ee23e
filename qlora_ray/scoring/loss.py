"""The loss of a model on a split: mean negative log-likelihood of the trained tokens, in nats.

Shapes: B rows of a batch, T tokens, N trained tokens of a batch, D hidden width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qlora_ray.config.schema import Precision
from qlora_ray.errors import DataError, ModelError
from qlora_ray.hardware.memory_counts import LOGITS_CHUNK_BYTES
from qlora_ray.modeling.heads import SplitModel
from qlora_ray.scoring.inference import evaluating, input_device, longest_first, map_batches
from qlora_ray.scoring.split import LossSplit


@dataclass(frozen=True)
class LossResult:
    """A split's loss. `num_rows` and `num_tokens` count what it is the mean of, which can be less than the split.

    `row_nll` is each row's summed negative log-likelihood in nats, and `row_tokens` the trained tokens it is the sum
    of: one entry per row of the split, both 0 where a row has none.

    `batch_size` is how many rows at once fit the device: what was asked for, unless batches were halved.
    """

    loss: float
    num_tokens: int
    num_rows: int
    row_nll: list[float]
    row_tokens: list[int]
    batch_size: int


def evaluate_loss(
    model: Any,
    split: LossSplit,
    *,
    batch_size: int,
    pad_token_id: int,
    precision: Precision,
    on_rows: Callable[[int], None] = lambda num_rows: None,
    on_hidden: Callable[[Sequence[int], Tensor], None] | None = None,
) -> LossResult:
    """Returns the mean over all trained tokens of the split, however they fall into rows and batches.

    A token is trained where `completion_mask` is 1; a row's first token has nothing before it to be predicted
    from and never counts. Rows without a trained token are skipped. Logits exist only at positions that predict
    a trained token, a chunk at a time, where the model has a body apart from its head.

    Args:
        model: A causal LM of transformers, or a PEFT model around one.
        batch_size: Rows at once; halved when the device runs out of memory.
        on_rows: Called with the rows of each batch that is done.
        on_hidden: Called with the numbers of a batch's rows and their last hidden states [B, T, D], padded on the
            right; again for rows of a batch that is tried again.

    Raises:
        DataError: no row has a trained token.
        ModelError: `on_hidden` is given, and the model has no body apart from its head.
        RuntimeError, MemoryError: If one row alone does not fit the device (`device_memory.is_out_of_memory`).
    """
    num_tokens = [sum(mask[1:]) for mask in split.completion_mask]
    rows = longest_first(split.input_ids, [row for row, num in enumerate(num_tokens) if num > 0])
    if not rows:
        raise DataError(
            f"evaluation: {split.name} must have at least one token that counts in the loss, got none in "
            f"{len(num_tokens)} rows. Check the answers, and data.max_length."
        )
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    try:
        parts: SplitModel | None = SplitModel(causal)
    except ValueError as error:
        if on_hidden is not None:
            raise ModelError(
                f"heads: need the hidden states of the base's body, got {error}. Leave heads out."
            ) from None
        parts = None

    def sum_nll(batch: Sequence[int]) -> list[float]:
        ids_BT, attention_BT, trained_BT = _pad_right(split, batch, pad_token_id=pad_token_id, device=device)
        predicts_BT = trained_BT[:, 1:]
        labels_N = ids_BT[:, 1:][predicts_BT]
        if parts is None:
            logits_BTV = causal(input_ids=ids_BT, attention_mask=attention_BT, use_cache=False).logits
            nll_N = _token_nll(logits_BTV[:, :-1][predicts_BT.to(logits_BTV.device)], labels_N, head=_identity)
        else:
            hidden_BTD = parts.hidden(ids_BT)
            if on_hidden is not None:
                on_hidden(batch, hidden_BTD)
            nll_N = _token_nll(hidden_BTD[:, :-1][predicts_BT.to(hidden_BTD.device)], labels_N, head=parts.logits)
        return [row_nll.sum().item() for row_nll in nll_N.split([num_tokens[row] for row in batch])]

    with evaluating(model, precision=precision):
        device = input_device(causal)
        row_nll = [0.0] * len(num_tokens)
        largest = 0
        for batch, sums in map_batches(rows, sum_nll, batch_size=batch_size):
            largest = max(largest, len(batch))
            on_rows(len(batch))
            for row, nll in zip(batch, sums, strict=True):
                row_nll[row] = nll
    total_tokens = sum(num_tokens)
    loss = math.fsum(row_nll) / total_tokens
    fitting = largest if largest < min(batch_size, len(rows)) else batch_size
    return LossResult(loss, total_tokens, len(rows), row_nll, num_tokens, fitting)


def _pad_right(
    split: LossSplit, batch: Sequence[int], *, pad_token_id: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns token ids, attention mask and the boolean mask of trained tokens, each [B, T]."""
    longest = max(len(split.input_ids[row]) for row in batch)
    ids, attention, trained = [], [], []
    for row in batch:
        row_ids = split.input_ids[row]
        num_pad = longest - len(row_ids)
        ids.append([*row_ids, *[pad_token_id] * num_pad])
        attention.append([1] * (longest - num_pad) + [0] * num_pad)
        trained.append([*split.completion_mask[row], *[0] * num_pad])
    return (
        torch.tensor(ids, device=device),
        torch.tensor(attention, device=device),
        torch.tensor(trained, device=device).bool(),
    )


def _identity(logits_NV: Tensor) -> Tensor:
    return logits_NV


def _token_nll(features_ND: Tensor, labels_N: Tensor, *, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the NLL of each of `labels_N` under `head(features_ND)`, [N] in float64 on the CPU, made in chunks."""
    num_total, start, chunk = len(features_ND), 0, 1
    chunks = []
    while start < num_total:
        logits_NV = head(features_ND[start : start + chunk]).float()
        labels = labels_N[start : start + chunk].to(logits_NV.device)
        chunks.append(functional.cross_entropy(logits_NV, labels, reduction="none").double().cpu())
        start += chunk
        chunk = max(1, LOGITS_CHUNK_BYTES // (4 * logits_NV.shape[-1]))
    return torch.cat(chunks)
