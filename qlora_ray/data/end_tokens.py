"""What an answer ends with, found in a rendering of the chat template: what training ends with, answering ends with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qlora_ray.data.examples import Example, Turn
from qlora_ray.data.templates import Template, render
from qlora_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASKED = Example((Turn("user", "Hello"), Turn("assistant", "Hi")), "a row to find the end token")
CHAT = Template("chat", "asked for what an answer ends with")


def find_chat_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template ends an answer with; None without a template, or without a token of its own.

    Base models often have another one as their tokenizer's end token: Qwen's ends texts with `<|endoftext|>`, and turns
    with `<|im_end|>`.
    """
    if not tokenizer.chat_template:
        return None
    try:
        pieces = render(ASKED, CHAT, tokenizer)
    except DataError:
        # It wants another kind of conversation; rows that it does render are looked at when they are prepared.
        return None
    answer = next(piece.text for piece in pieces if piece.is_trained)
    last = tokenizer(answer, add_special_tokens=False)["input_ids"][-1]
    return int(last) if is_end_token(last, tokenizer) else None


def find_trained_end(
    input_ids: Sequence[Sequence[int]], completion_mask: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> int | None:
    """The token that most rows' last answer was trained to end with; None where they end with none.

    Args:
        input_ids: Rows as tokens.
        completion_mask: 1 where a token is trained; as long as `input_ids`.
        tokenizer: Knows which tokens are end tokens.
    """
    found: Counter[int] = Counter()
    for ids, mask in zip(input_ids, completion_mask, strict=True):
        trained = [token for token, is_trained in zip(ids, mask, strict=True) if is_trained]
        if trained and is_end_token(trained[-1], tokenizer):
            found[trained[-1]] += 1
    return found.most_common(1)[0][0] if found else None


def is_end_token(token: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text can end with the token: the tokenizer's own, or one that was added beside the vocabulary."""
    return token == tokenizer.eos_token_id or token in tokenizer.added_tokens_decoder


def find_end_ids(tokenizer: PreTrainedTokenizerBase, own: int | Iterable[int | None] | None = None) -> list[int]:
    """All tokens that end an answer, in ascending order; the one list of every generation and every export.

    Args:
        tokenizer: Its own end token, which rows without a chat template end with, and its template's.
        own: The base's, of its generation_config.
    """
    known = own if isinstance(own, list | tuple) else [own]
    found = {tokenizer.eos_token_id, find_chat_end(tokenizer), *known}
    return sorted(int(token) for token in found if isinstance(token, int))
