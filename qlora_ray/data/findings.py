"""What is found in the data on the way to its tokens, put into the report's words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qlora_ray.config.schema import Data
from qlora_ray.data.counts import SplitCounts
from qlora_ray.data.formats import Conversion
from qlora_ray.data.notes import describe_notes
from qlora_ray.data.report import DataReport, LengthStats
from qlora_ray.data.splits import Overlap
from qlora_ray.data.templates import Template
from qlora_ray.formats import plural


@dataclass(frozen=True)
class Findings:
    """What is known of the data before a row is tokenized.

    Attributes:
        conversions: The formats of the sources and what was not taken as it was, by split.
        origins: Where the rows of each split come from, in words.
        overlap: By pairs of splits.
        num_examples: Of each split.
        is_text: Whether the rows are plain text.
        warnings: What was noticed when rows were divided among splits.
        classes: The labels of each auxiliary head, in the order of their numbers.
        num_labelled: By split and head, the rows that have one.
    """

    conversions: Mapping[str, Conversion]
    origins: Mapping[str, str]
    overlap: Mapping[str, Overlap]
    num_examples: Mapping[str, int]
    is_text: bool
    warnings: Sequence[str]
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    num_labelled: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def make_report(
    data: Data,
    rows: Findings,
    template: Template,
    counts: Mapping[str, SplitCounts],
    *,
    fingerprint: str,
    digests: Mapping[str, str],
) -> DataReport:
    """The report of data that is prepared.

    Args:
        data: The config section `data`.
        rows: What was found out when they were read.
        template: How they were rendered.
        counts: What tokenizing did to each split.
        fingerprint: Of the data.
        digests: Of the bytes of each source, by split.
    """
    overlap, is_text = rows.overlap, rows.is_text
    train_format = rows.conversions["train"].format
    warnings = list(rows.warnings)
    for split, conversion in rows.conversions.items():
        warnings += [f"{split}: {line}" for line in describe_notes(conversion.notes)]
        if conversion.format.name != train_format.name:
            warnings.append(f"{split}: the format is {conversion.format.name}, not {train_format.name} as in train")
    for split, count in counts.items():
        warnings += _count_warnings(split, count, data.max_length, rows.num_examples[split])
    for pair, found in overlap.items():
        if found.num_prompts:
            first, second = pair.split("/")
            warnings.append(
                f"overlap: {found.num_prompts} of {rows.num_examples[second]} {second} rows have a prompt that is in "
                f"{first} too ({found.num_pairs} with the same answer); scores on them measure memory"
            )
    if is_text and data.template != "auto":
        warnings.append(f"data.template {data.template!r} is not used: plain text is trained as it stands")
    return DataReport(
        format=train_format.name,
        format_reason=train_format.reason,
        template="none" if is_text else template.name,
        template_reason="plain text is trained as it stands" if is_text else template.reason,
        fingerprint=fingerprint,
        sources={split: rows.origins[split] for split in counts},
        digests=dict(digests),
        num_rows={split: count.num_kept for split, count in counts.items()},
        num_tokens={split: count.num_tokens for split, count in counts.items()},
        num_completion_tokens={split: count.num_completion_tokens for split, count in counts.items()},
        num_truncated={split: count.num_truncated for split, count in counts.items()},
        num_dropped={split: count.num_dropped for split, count in counts.items()},
        overlap={pair: found.num_prompts for pair, found in overlap.items()},
        overlap_answers={pair: found.num_pairs for pair, found in overlap.items()},
        overlap_verdict="fail" if any(found.num_prompts for found in overlap.values()) else "pass",
        lengths={split: LengthStats.of(count.lengths) for split, count in counts.items()},
        warnings=warnings,
        classes={head: list(classes) for head, classes in rows.classes.items()},
        num_labelled={split: dict(counts) for split, counts in rows.num_labelled.items()},
    )


def _count_warnings(split: str, count: SplitCounts, max_length: int, num_rows: int) -> list[str]:
    warnings = []
    if count.num_truncated:
        warnings.append(
            f"{split}: {count.num_truncated} of {num_rows} rows were longer than data.max_length {max_length} tokens "
            f"and lost their end; the longest has {max(count.lengths)}"
        )
    for reason, number in count.num_dropped.items():
        warnings.append(f"{split}: {number} of {num_rows} rows were dropped: {reason}")
    if count.num_without_end:
        warnings.append(
            f"{split}: {count.num_without_end} answers have no end token after them (the tokenizer or its chat "
            "template has none), so the model does not learn to stop"
        )
    if count.num_divided:
        warnings.append(
            f"{split}: {plural(count.num_divided, 'conversation')} became a row for each answer: the chat template "
            "renders earlier turns otherwise once a conversation goes on, so that an answer is trained where it is last"
        )
    if count.lost:
        warnings.append(
            f"{split}: {plural(len(count.lost), 'row')} of {len(count.lengths)} lost text in the template "
            f"({count.lost[0]} is left out or rewritten there, for one)"
        )
    if count.num_with_special_text:
        warnings.append(
            f"{split}: {count.num_with_special_text} rows hold the text of a special token, which is tokenized as one"
        )
    return warnings
