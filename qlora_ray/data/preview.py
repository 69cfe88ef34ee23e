"""One training sample as a human reads it, with the trained tokens marked."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from qlora_ray.data.report import PreparedData
from qlora_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "«", "»"


def render_preview(prepared: PreparedData, tokenizer: PreTrainedTokenizerBase, *, index: int = 0) -> str:
    """Returns a training sample decoded from its tokens, trained stretches between « and », with counts around it.

    Special tokens are shown: an end token that is not between the marks is one that the model does not learn.

    Args:
        prepared: The tokenized data.
        tokenizer: The tokenizer that made it.
        index: The training row, from 0.

    Raises:
        DataError: If train has no row of that index.
    """
    train, report = prepared.train, prepared.report
    if not 0 <= index < len(train):
        raise DataError(f"preview: index must be in 0..{len(train) - 1}, the rows of train, got {index}. Take another.")
    ids, mask = train.input_ids[index], train.completion_mask[index]
    text = ""
    for is_trained, group in groupby(zip(ids, mask, strict=True), key=lambda item: item[1] == 1):
        decoded = tokenizer.decode(
            [token for token, _ in group], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        text += f"{OPEN}{decoded}{CLOSE}" if is_trained else str(decoded)
    return "\n".join(
        [
            f"train sample {index} of {len(train)}: {len(ids)} tokens, {sum(mask)} trained, between {OPEN} and {CLOSE}",
            "-" * 80,
            text,
            "-" * 80,
            *report.summary_lines(),
        ]
    )
