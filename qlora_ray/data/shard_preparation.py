"""Prepares more data than is held in memory: a folder of shards that grows, and takes its name when it is whole."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from qlora_ray.data.arrow_files import SHARD_NAME, SHARD_PATTERN, map_table, write_taken
from qlora_ray.data.cache import folder_name, load_prepared, map_prepared, scratch_folder, take_name, write_report
from qlora_ray.data.counts import SplitCounts
from qlora_ray.data.report import DataReport, PreparedData
from qlora_ray.data.sharding import ShardRecord, ShardWorkers, ShardWriter, record_path, shard_workers, write_shards
from qlora_ray.data.split_examples import SplitExamples, Tell
from qlora_ray.data.tokenized import TokenizedSplit
from qlora_ray.errors import DataError
from qlora_ray.platforms import open_folder
from qlora_ray.runs.locks import hold, waited_for

# Shards of splits whose rows are to be put into another order.
UNORDERED = "unordered"


def prepare_in_shards(
    splits: Mapping[str, SplitExamples],
    writer: ShardWriter,
    *,
    cache_dir: Path,
    fingerprint: str,
    make_report: Callable[[Mapping[str, SplitCounts]], DataReport],
    tell: Tell,
) -> PreparedData:
    """Tokenizes all splits into a folder of the cache; what an earlier run has finished there is not made again.

    Args:
        splits: The rows of each split.
        writer: Tokenizes them.
        cache_dir: Where prepared data is kept.
        fingerprint: Of the data.
        make_report: Makes the report of the counts of each split.
        tell: Is told how far it is.

    Returns:
        The data, mapped from its files.

    Raises:
        DataError: If a row cannot be rendered, no row keeps an answer, or there is no room for the files.
    """
    warnings: list[str] = []
    try:
        folder = _make_partial(cache_dir, fingerprint)
    except OSError as error:
        warnings.append(f"not cached: {cache_dir} cannot be written ({error.strerror or error})")
        cache_dir = scratch_folder()
        folder = _make_partial(cache_dir, fingerprint)
    with _held(folder):
        # Another process may have prepared the same meanwhile.
        found = load_prepared(cache_dir, fingerprint)
        if found is not None:
            return found
        try:
            _make_partial(cache_dir, fingerprint)
            with shard_workers(writer) as workers:
                counts = {
                    name: _write_split(folder, name, examples, writer=writer, workers=workers, tell=tell)
                    for name, examples in splits.items()
                }
            report = make_report(counts)
            report = dataclasses.replace(report, warnings=[*report.warnings, *warnings])
            _clear(folder)
            write_report(folder, report)
            take_name(folder, cache_dir / folder_name(fingerprint))
        except OSError as error:
            raise DataError(
                f"data: prepared rows must be written to {cache_dir}, got: {error.strerror or error}. Make room there, "
                "or set QLORA_RAY_CACHE to a folder that has some, and start again: what is done is kept."
            ) from None
    prepared = map_prepared(cache_dir / folder_name(fingerprint), fingerprint)
    return dataclasses.replace(prepared, report=report)


def _make_partial(cache_dir: Path, fingerprint: str) -> Path:
    folder = cache_dir / f".{folder_name(fingerprint)}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Waits until no other process prepares the same data there."""
    descriptor = open_folder(folder)
    if descriptor is None:
        # Not in the folder, which is renamed at the end.
        with waited_for(folder.with_suffix(".lock")):
            yield
        return
    try:
        hold(descriptor)
        yield
    finally:
        os.close(descriptor)


def _write_split(
    folder: Path, name: str, examples: SplitExamples, *, writer: ShardWriter, workers: ShardWorkers, tell: Tell
) -> SplitCounts:
    shards = folder / name if examples.order is None else folder / UNORDERED / name
    shards.parent.mkdir(exist_ok=True)
    records = write_shards(shards, examples.read(), num_examples=len(examples), workers=workers, tell=tell)
    counts = SplitCounts.sum_of([record.counts for record in records])
    counts.check(name, max_length=writer.max_length)
    if examples.order is not None:
        (folder / name).mkdir(exist_ok=True)
        paths = [shards / SHARD_NAME.format(at) for at in range(len(records))]
        split = TokenizedSplit(name, map_table(paths, heads=writer.heads))
        write_taken(folder / name / SHARD_NAME.format(0), split, _order_rows(records, examples.order))
    return counts


def _order_rows(records: Sequence[ShardRecord], order: Sequence[int]) -> list[int]:
    """The places of the shards' rows, in the order that their Examples shall have."""
    rank = np.empty(len(order), dtype=np.int64)
    rank[np.asarray(order)] = np.arange(len(order))
    origins = np.concatenate([np.asarray(record.origins, dtype=np.int64) for record in records])
    rows: list[int] = np.argsort(rank[origins], kind="stable").tolist()
    return rows


def _clear(folder: Path) -> None:
    """Takes away what is needed only until all shards are whole."""
    shutil.rmtree(folder / UNORDERED, ignore_errors=True)
    for shard in folder.glob(f"*/{SHARD_PATTERN}"):
        record_path(shard).unlink(missing_ok=True)
