"""From the config's data section to tokenized splits and the report: read, convert, split, tokenize, cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qlora_ray.config.heads import Head
from qlora_ray.config.schema import Columns, Data
from qlora_ray.data.cache import compute_fingerprint, load_prepared, save_for_this_process, save_prepared
from qlora_ray.data.counts import SplitCounts
from qlora_ray.data.examples import Example
from qlora_ray.data.findings import Findings, make_report
from qlora_ray.data.labels import describe_labels, number_labels, resolve_classes
from qlora_ray.data.report import DataReport, PreparedData
from qlora_ray.data.shard_preparation import prepare_in_shards
from qlora_ray.data.sharding import ShardWriter
from qlora_ray.data.sources import Source, SplitSources, find_sources
from qlora_ray.data.split_examples import SourceExamples, SplitExamples, Tell
from qlora_ray.data.splits import RowChoice, find_overlap, hold_out
from qlora_ray.data.template_trial import check_template
from qlora_ray.data.templates import choose_template
from qlora_ray.data.tokenized import TokenizedSplit
from qlora_ray.data.tokenizing import tokenize_split
from qlora_ray.errors import DataError
from qlora_ray.runs.paths import default_cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED_COLUMNS = Columns(prompt="question", completion="sql")


def say_nothing(words: str) -> None:
    """Is told how far something is, and does not pass it on."""


def prepare_data(
    data: Data,
    *,
    tokenizer: PreTrainedTokenizerBase,
    data_seed: int,
    heads: Mapping[str, Head] | None = None,
    cache_dir: Path | None = None,
    tell: Tell = say_nothing,
) -> PreparedData:
    """Returns tokenized train, validation and test rows, from the cache where the same input was prepared before.

    Without a validation file, a fraction of train is held out by `data_seed`. `max_train_rows` takes rows of the source
    before that split; `max_validation_rows` of the source, or of the held-out side. Validation and test rows are in the
    order in which they are drawn, so that the first ones are a sample of them. See `splits.RowChoice`.

    Much data is tokenized by a process for each core, and goes on after what was done when it was stopped.

    Args:
        data: The config section `data`.
        tokenizer: The base's tokenizer: its chat template, special tokens and ids are used.
        data_seed: Seed of the validation split, and of rows that are drawn.
        heads: The config section `heads`: whose labels are read beside the rows.
        cache_dir: Where prepared data is kept; None means `$QLORA_RAY_CACHE`, or `~/.cache/qlora_ray`.
        tell: Is told how far it is, where it takes long.

    Raises:
        DataError: If a source is missing, empty, of no known format, or has a bad row; if a template does not fit the
            tokenizer or the rows; if `max_length` leaves no answer; if a head has no labels to learn.
    """
    sources = find_sources(data)
    template = choose_template(data.template, tokenizer)
    digests = {split: source.digest for split, source in _by_split(sources).items()}
    fingerprint = compute_fingerprint(data, digests=digests, tokenizer=tokenizer, data_seed=data_seed, heads=heads)
    cache_dir = default_cache_dir() if cache_dir is None else cache_dir
    cached = load_prepared(cache_dir, fingerprint)
    if cached is not None:
        return cached

    if template.name == "chat":
        check_template(tokenizer)
    heads = heads or {}
    splits, findings = _read_splits(data, sources, data_seed, tell, heads)

    def report(counts: Mapping[str, SplitCounts]) -> DataReport:
        return make_report(data, findings, template, counts, fingerprint=fingerprint, digests=digests)

    if not all(examples.source.is_kept for examples in splits.values()):
        writer = ShardWriter(template, tokenizer, data.max_length, trains_all=data.loss == "all", heads=tuple(heads))
        return prepare_in_shards(
            splits, writer, cache_dir=cache_dir, fingerprint=fingerprint, make_report=report, tell=tell
        )
    rows: dict[str, TokenizedSplit] = {}
    counts: dict[str, SplitCounts] = {}
    for split, examples in splits.items():
        rows[split], counts[split] = tokenize_split(
            split,
            examples.in_order(),
            template=template,
            tokenizer=tokenizer,
            max_length=data.max_length,
            trains_all=data.loss == "all",
            heads=tuple(heads),
        )
    return _save(PreparedData(rows["train"], rows["validation"], rows.get("test"), report(counts)), cache_dir)


def read_examples(data: Data, *, data_seed: int, heads: Mapping[str, Head] | None = None) -> dict[str, list[Example]]:
    """Returns the rows of each split as `prepare_data` tokenizes them, before any is cut or dropped for its length.

    Raises:
        DataError: If a source is missing, empty, of no known format, or has a bad row.
    """
    splits, _ = _read_splits(data, find_sources(data), data_seed, say_nothing, heads or {})
    return {name: examples.in_order() for name, examples in splits.items()}


def _save(prepared: PreparedData, cache_dir: Path) -> PreparedData:
    try:
        return save_prepared(cache_dir, prepared)
    except OSError as error:
        warning = f"not cached: {cache_dir} cannot be written ({error.strerror or error})"
        report = dataclasses.replace(prepared.report, warnings=[*prepared.report.warnings, warning])
        prepared = dataclasses.replace(prepared, report=report)
    try:
        return save_for_this_process(prepared)
    except OSError as error:
        raise DataError(
            f"{cache_dir}: prepared data must be written there or to the folder of temporary files, got "
            f"{error.filename}: {error.strerror or error}. Set QLORA_RAY_CACHE to a folder that has room."
        ) from None


def _by_split(sources: SplitSources) -> dict[str, Source]:
    found = {"train": sources.train, "validation": sources.validation, "test": sources.test}
    return {split: source for split, source in found.items() if source is not None}


def _read_splits(
    data: Data, sources: SplitSources, data_seed: int, tell: Tell, heads: Mapping[str, Head]
) -> tuple[dict[str, SplitExamples], Findings]:
    """Each split's rows, and what is known of them before they are tokenized."""
    named = _by_split(sources)
    choices = _row_choices(data, data_seed)
    read = {
        split: SourceExamples(source, choices[split], _format_settings(data, split), heads=heads, tell=tell)
        for split, source in named.items()
    }
    _check_one_kind(read, named)
    _check_pooling(heads, read["train"], sources.train)
    rows = {split: np.arange(len(examples)) for split, examples in read.items()}
    from_source = dict(read)
    origins = {split: source.name for split, source in named.items()}
    warnings: list[str] = []
    if sources.fraction is not None:
        held = hold_out(read["train"].keys, sources.fraction, source_name=sources.train.name)
        validation = np.flatnonzero(held.is_validation)
        rows["train"] = np.flatnonzero(~held.is_validation)
        rows["validation"] = validation[list(choices["validation"].choose(len(validation)))]
        from_source["validation"] = read["train"]
        origins["validation"] = (
            f"{sources.fraction:g} of {sources.train.name}, by data_seed {data_seed} ({sources.fraction_reason})"
        )
        if held.num_grouped:
            warnings.append(
                f"{held.num_grouped} rows of {sources.train.name} share their prompt with another row; "
                "rows of one prompt were kept on one side of the validation split"
            )
    classes = resolve_classes(heads, read["train"].labels, rows["train"]) if heads else {}
    labels = {split: number_labels(classes, from_source[split].labels, rows[split]) for split in rows if heads}
    splits: dict[str, SplitExamples] = {
        split: SplitExamples(
            from_source[split],
            rows[split],
            # Where only some of them are answered, it is the first ones.
            order=None if split == "train" or choices[split].takes_first else choices[split].order(len(rows[split])),
            system_prompt=data.system_prompt,
            labels=labels.get(split),
        )
        for split in ("train", "validation", "test")
        if split in rows
    }
    findings = Findings(
        conversions={split: examples.conversion for split, examples in read.items()},
        origins=origins,
        overlap=find_overlap({split: examples.keys for split, examples in splits.items()}),
        num_examples={split: len(examples) for split, examples in splits.items()},
        is_text=read["train"].is_text,
        warnings=[*warnings, *_system_prompt_warnings(data, splits), *describe_labels(heads, classes, labels)],
        classes=classes,
        num_labelled={split: own.num_labelled(list(classes)) for split, own in labels.items()},
    )
    return splits, findings


def _row_choices(data: Data, data_seed: int) -> dict[str, RowChoice]:
    limits = {"train": data.max_train_rows, "validation": data.max_validation_rows, "test": data.max_test_rows}
    return {
        split: RowChoice(max_rows, data_seed, takes_first=data.row_choice == "first")
        for split, max_rows in limits.items()
    }


def _check_one_kind(read: Mapping[str, SourceExamples], named: Mapping[str, Source]) -> None:
    kinds = {True: "plain text", False: "questions and answers"}
    is_text = read["train"].is_text
    for split, examples in read.items():
        if examples.is_text != is_text:
            raise DataError(
                f"{named[split].name}: must have {kinds[is_text]} as train has, got {kinds[not is_text]}, "
                f"so their losses could not be compared. Give data.{split} rows like train's."
            )


def _check_pooling(heads: Mapping[str, Head], train: SourceExamples, source: Source) -> None:
    for name, head in heads.items():
        if head.pooling == "prompt" and train.is_text:
            raise DataError(
                f"heads.{name}.pooling: prompt needs rows with a question and an answer, got plain text in "
                f"{source.name}. Set heads.{name}.pooling to last or mean."
            )


def _format_settings(data: Data, split: str) -> Data:
    """The shipped validation and test rows keep their own columns when train is another file of other columns."""
    is_shipped = getattr(data, split) == "embedded" and data.train != "embedded"
    return Data(format="columns", columns=EMBEDDED_COLUMNS) if is_shipped else data


def _system_prompt_warnings(data: Data, splits: Mapping[str, SplitExamples]) -> list[str]:
    warnings: list[str] = []
    for split, examples in splits.items():
        if data.system_prompt and examples.num_without_prompt:
            why = "are plain text" if examples.source.is_text else "have a system turn of their own"
            num = examples.num_without_prompt
            warnings.append(f"{split}: data.system_prompt was not used for {num} rows, which {why}")
    return warnings
