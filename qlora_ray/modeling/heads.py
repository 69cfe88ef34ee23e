"""A causal LM as a body, which makes hidden states, and what it does with them after that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class SplitModel:
    """Body and head of a causal LM of transformers.

    The head is more than a matrix in some models (gemma2 caps logits; cohere and granite scale them), and each spells
    it differently. So the model's own forward is run, with hidden states put in where the body would make them.

    Args:
        causal: A causal LM.

    Raises:
        ValueError: If it has no body of its own.
    """

    def __init__(self, causal: Any) -> None:
        # base_model is not it in OPT, whose forward calls the decoder inside.
        self.body = causal.get_decoder()
        if self.body is causal:
            raise ValueError(f"{type(causal).__name__} has no body apart from its head")
        self._causal = causal
        self._output_type: Any = None

    def hidden(self, input_ids_BT: Tensor) -> Tensor:
        """The last hidden states of rows padded on the right, [B, T, D].

        No attention mask: a token attends to those before it, and padding comes after all that count.
        """
        output = self.body(input_ids=input_ids_BT, use_cache=False)
        # Causal LMs read more from it than the hidden states: router_logits, cross_attentions; None will do.
        self._output_type = type(output)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """The logits of hidden states, [N, V]."""
        import torch

        placeholder = torch.zeros(1, len(hidden_ND), dtype=torch.long, device=hidden_ND.device)
        with _returning(self.body, self._output_type, hidden_ND[None]):
            logits: Tensor = self._causal(input_ids=placeholder, use_cache=False).logits[0]
        return logits


@contextmanager
def _returning(body: Any, output_type: Any, hidden_BTD: Tensor) -> Iterator[None]:
    """The body gives back these hidden states, whatever it is asked."""
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    output_type = output_type or BaseModelOutputWithPastAndCrossAttentions
    own = body.__dict__.get("forward")
    body.forward = lambda *args, **kwargs: output_type(last_hidden_state=hidden_BTD)
    try:
        yield
    finally:
        if own is None:
            del body.forward
        else:
            body.forward = own
