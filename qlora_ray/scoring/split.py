"""What evaluation asks of a tokenized split; `qlora_ray.data.TokenizedSplit` is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class LossSplit(Protocol):
    """Rows as tokens. All sequences have one entry per row."""

    @property
    def name(self) -> str:
        """What messages call the split, e.g. `validation`."""

    @property
    def input_ids(self) -> Sequence[Sequence[int]]:
        """Prompt and answer as tokens."""

    @property
    def completion_mask(self) -> Sequence[Sequence[int]]:
        """1 where the token counts in the loss, 0 elsewhere; as long as `input_ids`."""


class EvaluationSplit(LossSplit, Protocol):
    """Rows with the prompt alone and the answer's text beside them."""

    @property
    def prompt_ids(self) -> Sequence[Sequence[int]]:
        """The tokens that generation starts from. Not used where there is nothing to compare answers with."""

    @property
    def references(self) -> Sequence[str]:
        """The expected answers, as text."""

    @property
    def alternatives(self) -> Sequence[Sequence[str]]:
        """Other answers that are as right, for each row."""
