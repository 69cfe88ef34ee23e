"""From the config's data section to tokenized splits and the report: read, convert, split, tokenize, cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_ray.config.schema import Columns, Data
from qlora_ray.data.cache import compute_fingerprint, load_prepared, save_for_this_process, save_prepared
from qlora_ray.data.examples import Example, Turn
from qlora_ray.data.formats import Conversion, convert_rows
from qlora_ray.data.notes import describe_notes
from qlora_ray.data.report import DataReport, LengthStats, PreparedData
from qlora_ray.data.sources import Source, SplitSources, find_sources
from qlora_ray.data.splits import RowChoice, find_overlap, hold_out
from qlora_ray.data.templates import Template, choose_template
from qlora_ray.data.tokenized import TokenizedSplit
from qlora_ray.data.tokenizing import SplitCounts, tokenize_split
from qlora_ray.errors import DataError
from qlora_ray.formats import plural
from qlora_ray.runs.paths import default_cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED_COLUMNS = Columns(prompt="question", completion="sql")


def prepare_data(
    data: Data, *, tokenizer: PreTrainedTokenizerBase, data_seed: int, cache_dir: Path | None = None
) -> PreparedData:
    """Returns tokenized train, validation and test rows, from the cache where the same input was prepared before.

    Without a validation file, a fraction of train is held out by `data_seed`. `max_train_rows` takes rows of the source
    before that split; `max_validation_rows` of the source, or of the held-out side. Validation and test rows are in the
    order in which they are drawn, so that the first ones are a sample of them. See `splits.RowChoice`.

    Args:
        data: The config section `data`.
        tokenizer: The base's tokenizer: its chat template, special tokens and ids are used.
        data_seed: Seed of the validation split, and of rows that are drawn.
        cache_dir: Where prepared data is kept; None means `$QLORA_RAY_CACHE`, or `~/.cache/qlora_ray`.

    Raises:
        DataError: If a source is missing, empty, of no known format, or has a bad row; if a template does not fit the
            tokenizer or the rows; if `max_length` leaves no answer.
    """
    sources = find_sources(data)
    template = choose_template(data.template, tokenizer)
    named = _by_split(sources)
    digests = {split: source.digest for split, source in named.items()}
    fingerprint = compute_fingerprint(data, digests=digests, tokenizer=tokenizer, data_seed=data_seed)
    cache_dir = default_cache_dir() if cache_dir is None else cache_dir
    cached = load_prepared(cache_dir, fingerprint)
    if cached is not None:
        return cached

    rows = _read_rows(data, sources, data_seed)
    splits: dict[str, TokenizedSplit] = {}
    counts: dict[str, SplitCounts] = {}
    for split, examples in rows.examples.items():
        splits[split], counts[split] = tokenize_split(
            split, examples, template=template, tokenizer=tokenizer, max_length=data.max_length
        )
    report = _report(data, rows, template, splits, counts, fingerprint=fingerprint, digests=digests)
    prepared = PreparedData(splits["train"], splits["validation"], splits.get("test"), report)
    try:
        return save_prepared(cache_dir, prepared)
    except OSError as error:
        warning = f"not cached: {cache_dir} cannot be written ({error.strerror or error})"
        report = dataclasses.replace(report, warnings=[*report.warnings, warning])
        prepared = dataclasses.replace(prepared, report=report)
    try:
        return save_for_this_process(prepared)
    except OSError as error:
        raise DataError(
            f"{cache_dir}: prepared data must be written there or to the folder of temporary files, got "
            f"{error.filename}: {error.strerror or error}. Set QLORA_RAY_CACHE to a folder that has room."
        ) from None


def read_examples(data: Data, *, data_seed: int) -> dict[str, list[Example]]:
    """Returns the rows of each split as `prepare_data` tokenizes them, before any is cut or dropped for its length.

    Raises:
        DataError: If a source is missing, empty, of no known format, or has a bad row.
    """
    return _read_rows(data, find_sources(data), data_seed).examples


@dataclass(frozen=True)
class _Rows:
    """Examples per split, and what was noticed on the way to them."""

    examples: dict[str, list[Example]]
    conversions: dict[str, Conversion]
    origins: dict[str, str]
    warnings: list[str]


def _by_split(sources: SplitSources) -> dict[str, Source]:
    found = {"train": sources.train, "validation": sources.validation, "test": sources.test}
    return {split: source for split, source in found.items() if source is not None}


def _read_rows(data: Data, sources: SplitSources, data_seed: int) -> _Rows:
    named = _by_split(sources)
    choices = {
        split: RowChoice(max_rows, data_seed, takes_first=data.row_choice == "first")
        for split, max_rows in (
            ("train", data.max_train_rows),
            ("validation", data.max_validation_rows),
            ("test", data.max_test_rows),
        )
    }
    conversions = {
        split: convert_rows(source.name, source.read(choices[split]), _format_settings(data, split))
        for split, source in named.items()
    }
    examples = {split: conversion.examples for split, conversion in conversions.items()}
    _check_one_kind(examples, named)
    origins = {split: source.name for split, source in named.items()}
    warnings: list[str] = []
    if sources.fraction is not None:
        held = hold_out(examples["train"], sources.fraction, data_seed=data_seed, source_name=sources.train.name)
        test = {"test": examples["test"]} if "test" in examples else {}
        validation = [held.validation[at] for at in choices["validation"].choose(len(held.validation))]
        examples = {"train": held.train, "validation": validation, **test}
        origins["validation"] = (
            f"{sources.fraction:g} of {sources.train.name}, by data_seed {data_seed} ({sources.fraction_reason})"
        )
        if held.num_grouped:
            warnings.append(
                f"{held.num_grouped} rows of {sources.train.name} share their prompt with another row; "
                "rows of one prompt were kept on one side of the validation split"
            )
    for split in examples.keys() - {"train"}:
        # Where only some of them are answered, it is the first ones.
        examples[split] = [examples[split][at] for at in choices[split].order(len(examples[split]))]
    examples, system_warnings = _add_system_prompt(data.system_prompt, examples)
    return _Rows(examples, conversions, origins, warnings + system_warnings)


def _check_one_kind(examples: Mapping[str, Sequence[Example]], named: Mapping[str, Source]) -> None:
    kinds = {True: "plain text", False: "questions and answers"}
    is_text = examples["train"][0].is_text
    for split, rows in examples.items():
        if rows[0].is_text != is_text:
            raise DataError(
                f"{named[split].name}: must have {kinds[is_text]} as train has, got {kinds[not is_text]}, "
                f"so their losses could not be compared. Give data.{split} rows like train's."
            )


def _format_settings(data: Data, split: str) -> Data:
    """The shipped validation and test rows keep their own columns when train is another file of other columns."""
    is_shipped = getattr(data, split) == "embedded" and data.train != "embedded"
    return Data(format="columns", columns=EMBEDDED_COLUMNS) if is_shipped else data


def _add_system_prompt(
    system_prompt: str | None, examples: Mapping[str, Sequence[Example]]
) -> tuple[dict[str, list[Example]], list[str]]:
    result = {split: list(rows) for split, rows in examples.items()}
    warnings: list[str] = []
    if not system_prompt:
        return result, warnings
    for split, rows in result.items():
        is_bare = [not row.is_text and row.turns[0].role != "system" for row in rows]
        result[split] = [
            dataclasses.replace(row, turns=(Turn("system", system_prompt), *row.turns)) if bare else row
            for row, bare in zip(rows, is_bare, strict=True)
        ]
        if not all(is_bare):
            why = "are plain text" if rows[0].is_text else "have a system turn of their own"
            warnings.append(f"{split}: data.system_prompt was not used for {is_bare.count(False)} rows, which {why}")
    return result, warnings


def _report(
    data: Data,
    rows: _Rows,
    template: Template,
    splits: Mapping[str, TokenizedSplit],
    counts: Mapping[str, SplitCounts],
    *,
    fingerprint: str,
    digests: Mapping[str, str],
) -> DataReport:
    overlap = find_overlap(rows.examples)
    train_format = rows.conversions["train"].format
    is_text = rows.examples["train"][0].is_text
    warnings = list(rows.warnings)
    for split, conversion in rows.conversions.items():
        warnings += [f"{split}: {line}" for line in describe_notes(conversion.notes)]
        if conversion.format.name != train_format.name:
            warnings.append(f"{split}: the format is {conversion.format.name}, not {train_format.name} as in train")
    for split, count in counts.items():
        warnings += _count_warnings(split, count, data.max_length, len(rows.examples[split]))
    for pair, found in overlap.items():
        if found.num_prompts:
            first, second = pair.split("/")
            warnings.append(
                f"overlap: {found.num_prompts} of {len(rows.examples[second])} {second} rows have a prompt that is in "
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
        sources={split: rows.origins[split] for split in splits},
        digests=dict(digests),
        num_rows={split: len(tokenized) for split, tokenized in splits.items()},
        num_tokens={split: tokenized.num_tokens for split, tokenized in splits.items()},
        num_completion_tokens={split: tokenized.num_completion_tokens for split, tokenized in splits.items()},
        num_truncated={split: count.num_truncated for split, count in counts.items()},
        num_dropped={split: count.num_dropped for split, count in counts.items()},
        overlap={pair: found.num_prompts for pair, found in overlap.items()},
        overlap_answers={pair: found.num_pairs for pair, found in overlap.items()},
        overlap_verdict="fail" if any(found.num_prompts for found in overlap.values()) else "pass",
        lengths={split: LengthStats.of(count.lengths) for split, count in counts.items()},
        warnings=warnings,
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
