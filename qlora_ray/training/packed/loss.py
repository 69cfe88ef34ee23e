"""Each trial's mean loss over its own answer tokens, with logits made at those positions only, a chunk at a time.

The stock path makes the logits of every token at once, about 16 bytes x vocabulary per token. Here the body's
gradient is found chunk by chunk and handed back to it, so that one chunk's logits live at a time.

Shapes: B rows, T tokens, D width, N predicted tokens, M trials (trials that step), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qlora_ray.hardware.memory_counts import LOGITS_CHUNK_BYTES


def backward_losses(
    hidden_BTD: Tensor,
    *,
    positions_N: Tensor,
    labels_N: Tensor,
    trials_N: Tensor,
    weights_N: Tensor,
    num_trials: int,
    vocab_size: int,
    logits_of: Callable[[Tensor], Tensor],
    others: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Computes the micro-batch's losses and runs its backward.

    Args:
        hidden_BTD: The last hidden states of the micro-batch.
        positions_N: Flat positions (row * T + token) that predict an answer token.
        labels_N: The tokens to be predicted there.
        trials_N: The number of the trial that each of them belongs to, 0 to M - 1.
        weights_N: What each token's loss is multiplied with in the backward: 1 / (the trial's answer tokens in its
            whole step), times the trial's loss scale.
        num_trials: M, the trials that take this step.
        vocab_size: V, which the size of a chunk follows from.
        logits_of: Head and whatever the model does after it, [n, D] -> [n, V].
        others: What else is computed from the hidden states, and its gradient: they share the backward.

    Returns:
        Each trial's summed, unweighted loss, [M], fp32.
    """
    features_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[positions_N]
    gradient_ND = torch.empty_like(features_ND)
    sums_M = torch.zeros(num_trials, device=hidden_BTD.device)
    size = max(1, LOGITS_CHUNK_BYTES // (4 * vocab_size))
    for start in range(0, len(labels_N), size):
        chunk = slice(start, start + size)
        leaf_ND = features_ND[chunk].detach().requires_grad_()
        with torch.enable_grad():
            losses_N = F.cross_entropy(logits_of(leaf_ND).float(), labels_N[chunk], reduction="none")
            weighted = torch.dot(losses_N, weights_N[chunk])
        gradient_ND[chunk] = torch.autograd.grad(weighted, leaf_ND)[0]
        sums_M.index_add_(0, trials_N[chunk], losses_N.detach())
    torch.autograd.backward(
        [features_ND, *(tensor for tensor, _ in others)], [gradient_ND, *(gradient for _, gradient in others)]
    )
    return sums_M
