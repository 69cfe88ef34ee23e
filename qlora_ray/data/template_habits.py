"""What a chat template does, found by rendering small conversations: how it ends turns, and shows results of tools."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@functools.lru_cache(maxsize=16)
def find_end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The added tokens that end an answer, both the last one and one that is followed by a question.

    So neither the end of the whole text (Phi-4-mini's `<|endoftext|>` behind `<|end|>`) nor the beginning of the next
    turn, but all of `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>` (Command R7B's). Empty where there are none: gpt-oss has
    one token for the last answer and another one for those before.

    Args:
        tokenizer: The one that renders.
        template: Its chat template, by which the answer is kept.
    """
    rounds = [{"role": role, "content": f"{role} {number}"} for number in (1, 2) for role in ("user", "assistant")]
    try:
        text = str(tokenizer.apply_chat_template(rounds, tokenize=False))
    except Exception:
        return ""
    known = {tokenizer.eos_token, *(token.content for token in tokenizer.added_tokens_decoder.values())}
    tokens = sorted((token for token in known if token and token.strip()), key=len)
    run = re.compile(rf"\s*({'|'.join(map(re.escape, reversed(tokens)))})") if tokens else None
    _, has_first, followed = text.partition("assistant 1")
    _, has_last, last = followed.partition("assistant 2")
    if run is None or not (has_first and has_last):
        return ""
    end = ""
    while (match := run.match(last, len(end))) and followed.startswith(end + match[0]):
        end += match[0]
    return end.lstrip()


@functools.lru_cache(maxsize=16)
def wraps_results(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether the chat template, which the answer is kept by, puts `<tool_response>` around a tool's result."""
    call = {"type": "function", "function": {"name": "look", "arguments": {}}, "id": "call00001"}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "look", "tool_call_id": "call00001", "content": "seen"},
    ]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:
        return False
    return re.search(r"<tool_response>\s*seen\s*</tool_response>", text) is not None
