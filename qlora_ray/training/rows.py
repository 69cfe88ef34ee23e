"""The rows that engines train and validate on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlora_ray.data import TokenizedSplit


@dataclass(frozen=True)
class TrainingData:
    """Tokens and trained-token masks of the training and validation rows: the same for every engine."""

    train: TokenizedSplit
    validation: TokenizedSplit
