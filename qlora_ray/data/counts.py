"""What tokenizing did to a split's rows, in numbers that add up over its parts."""

from __future__ import annotations

import dataclasses
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from qlora_ray.errors import DataError

# Where more rows lose text, the template does not fit the data.
MAX_LOST_SHARE = 0.5


@dataclass(frozen=True)
class SplitCounts:
    """What tokenizing rows did to them.

    `lengths` are in tokens, before any cut. `num_tokens` and `num_completion_tokens` are of the rows that are kept.
    `num_divided` conversations became a row for each answer. `lost` says of each row that lost text in its template
    what that was.
    """

    lengths: Sequence[int] = ()
    num_truncated: int = 0
    num_dropped: dict[str, int] = field(default_factory=dict)
    num_without_end: int = 0
    num_with_special_text: int = 0
    num_divided: int = 0
    lost: list[str] = field(default_factory=list)
    num_tokens: int = 0
    num_completion_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON types."""
        return {**dataclasses.asdict(self), "lengths": list(self.lengths)}

    @property
    def num_kept(self) -> int:
        """Rows that are kept."""
        return len(self.lengths) - sum(self.num_dropped.values())

    @classmethod
    def sum_of(cls, parts: Sequence[SplitCounts]) -> SplitCounts:
        """The counts of all parts of a split, in their order."""
        dropped: Counter[str] = Counter()
        for part in parts:
            dropped.update(part.num_dropped)
        return cls(
            array("q", chain.from_iterable(part.lengths for part in parts)),
            sum(part.num_truncated for part in parts),
            dict(dropped),
            sum(part.num_without_end for part in parts),
            sum(part.num_with_special_text for part in parts),
            sum(part.num_divided for part in parts),
            [lost for part in parts for lost in part.lost],
            sum(part.num_tokens for part in parts),
            sum(part.num_completion_tokens for part in parts),
        )

    def check(self, name: str, *, max_length: int) -> None:
        """Holds the counts of a whole split against what must be.

        Args:
            name: The split's name.
            max_length: `data.max_length`.

        Raises:
            DataError: If no row keeps a trained token, or most rows lose text in the template.
        """
        if len(self.lost) > MAX_LOST_SHARE * len(self.lengths):
            raise DataError(
                f"{self.lost[0]} must be in the rendered row, got a template that leaves it out or rewrites it, as it "
                f"does in {len(self.lost)} of {len(self.lengths)} {name} rows. Use a template that renders it, write "
                "it into the answer's own text, or remove it."
            )
        if not self.num_tokens:
            raise DataError(
                f"data.max_length: {name} rows must keep a part of their answer, got {max_length} for rows of "
                f"{min(self.lengths)} to {max(self.lengths)} tokens, whose answers are all cut away. "
                f"Raise data.max_length; {max(self.lengths)} cuts nothing."
            )
