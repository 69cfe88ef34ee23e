"""What comes out of data preparation: the splits, and the report that goes into the sweep's manifest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.formats import list_first

if TYPE_CHECKING:
    from qlora_ray.data.tokenized import TokenizedSplit

# Of a head, in the summary's line.
MAX_SHOWN_CLASSES = 8


@dataclass(frozen=True)
class LengthStats:
    """Tokens per row, before rows are cut to max_length. `p95` is the nearest-rank percentile."""

    mean: float
    p95: int
    max: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> LengthStats:
        """Summarizes at least one length."""
        ordered = sorted(lengths)
        rank = math.ceil(0.95 * len(ordered))
        return cls(mean=round(sum(ordered) / len(ordered), 2), p95=ordered[rank - 1], max=ordered[-1])


@dataclass(frozen=True)
class DataReport:
    """Everything that was found and decided. Dicts are keyed by split (`train`) or pair of splits (`train/validation`).

    `overlap` counts the rows of the pair's second split whose prompt is also in the first; `overlap_answers` those
    whose answer is the same too. `num_truncated` includes rows that were dropped. `digests` are of the bytes of each
    source. `classes` are the labels of each auxiliary head, in the order of their numbers, and `num_labelled` the rows
    of each split that have one, by head. `from_cache` is how this run came by it, and no part of equality.
    """

    format: str
    format_reason: str
    template: str
    template_reason: str
    fingerprint: str
    sources: dict[str, str]
    digests: dict[str, str]
    num_rows: dict[str, int]
    num_tokens: dict[str, int]
    num_completion_tokens: dict[str, int]
    num_truncated: dict[str, int]
    num_dropped: dict[str, dict[str, int]]
    overlap: dict[str, int]
    overlap_answers: dict[str, int]
    overlap_verdict: str
    lengths: dict[str, LengthStats]
    warnings: list[str] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    num_labelled: dict[str, dict[str, int]] = field(default_factory=dict)
    from_cache: bool = field(default=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataReport:
        """The inverse of `to_dict`.

        Raises:
            TypeError: If a field is missing or unknown.
        """
        lengths = {split: LengthStats(**stats) for split, stats in values["lengths"].items()}
        return cls(**{**values, "lengths": lengths})

    def summary_lines(self) -> list[str]:
        """The report as a few lines for a terminal; warnings last."""
        lines = [f"format {self.format} ({self.format_reason})", f"template {self.template} ({self.template_reason})"]
        for split, num_rows in self.num_rows.items():
            stats = self.lengths[split]
            lines.append(
                f"{split}: {num_rows} rows from {self.sources[split]}; {self.num_completion_tokens[split]} of "
                f"{self.num_tokens[split]} tokens trained; length mean {stats.mean:g}, p95 {stats.p95}, "
                f"max {stats.max}; {self.num_truncated[split]} cut, {sum(self.num_dropped[split].values())} dropped"
            )
        pairs = ", ".join(f"{pair} {count}" for pair, count in self.overlap.items())
        lines.append(f"overlap check {self.overlap_verdict}: {pairs}")
        for head, classes in self.classes.items():
            labelled = ", ".join(f"{split} {counts[head]}" for split, counts in self.num_labelled.items())
            shown = list_first(classes, limit=MAX_SHOWN_CLASSES)
            lines.append(f"head {head}: {len(classes)} classes ({shown}); rows with a label: {labelled}")
        return lines + [f"warning: {warning}" for warning in self.warnings]


@dataclass(frozen=True)
class PreparedData:
    """Tokenized splits, ready for any engine; `test` is None where there is none.

    `folder` is where they lie, for other processes to map; None where they are in memory only.
    """

    train: TokenizedSplit
    validation: TokenizedSplit
    test: TokenizedSplit | None
    report: DataReport
    folder: Path | None = field(default=None, compare=False)

    @property
    def splits(self) -> dict[str, TokenizedSplit]:
        """The splits that are there, by name."""
        found = {"train": self.train, "validation": self.validation}
        return found if self.test is None else {**found, "test": self.test}
