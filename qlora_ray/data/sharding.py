"""Tokenizes large splits shard by shard on all cores, in bounded memory.

A shard is a file of some thousand rows. Those that are whole are kept when the process is stopped, and not made again.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_ray.data.arrow_files import SHARD_NAME, map_table, write_table
from qlora_ray.data.counts import SplitCounts
from qlora_ray.data.examples import Example
from qlora_ray.data.split_examples import Tell, count_characters
from qlora_ray.data.templates import Template
from qlora_ray.data.tokenizing import tokenize_rows
from qlora_ray.errors import DataError
from qlora_ray.formats import format_duration
from qlora_ray.hardware.probe import count_cpus
from qlora_ray.regular_files import load_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A shard ends with whichever comes first: 5 s of one core, and 20 MB on disk.
SHARD_ROWS = 4096
SHARD_CHARACTERS = 8_000_000
# Waiting beside those that are tokenized, so that no worker waits for rows to be read.
WAITING_SHARDS_PER_WORKER = 1
# A worker process has 200 MB of its own, most of it transformers: so many are 3 GB.
MAX_WORKERS = 16


@dataclass(frozen=True)
class ShardRecord:
    """What is in a shard's file; it is written after that.

    Attributes:
        first_example: Place of the shard's first Example in the split.
        num_examples: Examples that it was made of.
        origins: Of each row, the place in the split of the Example that it came from.
        counts: Of these Examples.
    """

    first_example: int
    num_examples: int
    origins: list[int]
    counts: SplitCounts


@dataclass(frozen=True)
class ShardWriter:
    """Tokenizes the Examples of a shard and writes its file."""

    template: Template
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    trains_all: bool = False
    heads: tuple[str, ...] = ()

    def write(self, folder: Path, number: int, first_example: int, examples: list[Example]) -> ShardRecord:
        """Writes one shard of a split, file before record, each whole or not at all.

        Args:
            folder: The split's; its name is the split's too.
            number: The shard's.
            first_example: Place of its first Example in the split.
            examples: All of its Examples.

        Raises:
            DataError: If a row cannot be rendered.
        """
        found = tokenize_rows(
            folder.name,
            examples,
            template=self.template,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            trains_all=self.trains_all,
            heads=self.heads,
        )
        origins = [first_example + origin for origin in found.origins]
        record = ShardRecord(first_example, len(examples), origins, found.counts)
        path = folder / SHARD_NAME.format(number)
        write_table(path.with_suffix(".new"), found.rows.table)
        path.with_suffix(".new").rename(path)
        text = json.dumps(dataclasses.asdict(record) | {"counts": record.counts.to_dict()})
        record_path(path).with_suffix(".new").write_text(text, encoding="utf-8")
        record_path(path).with_suffix(".new").rename(record_path(path))
        return record


def record_path(shard: Path) -> Path:
    """Where a shard's record lies, until all shards are whole."""
    return shard.with_suffix(".json")


@dataclass(frozen=True)
class ShardWorkers:
    """Who tokenizes shards: `submit` is called with the arguments of `ShardWriter.write`.

    `heads` have labels in the shards.
    """

    submit: Callable[[Path, int, int, list[Example]], Future[ShardRecord]]
    num_workers: int
    heads: Sequence[str] = ()


@contextmanager
def shard_workers(writer: ShardWriter) -> Iterator[ShardWorkers]:
    """A process for each core; on a single core, or for a tokenizer of code of its own, this process.

    Such code lies in no package that another process could import.
    """
    is_own_code = type(writer.tokenizer).__module__.startswith("transformers_modules")
    num_workers = 1 if is_own_code else min(count_cpus(), MAX_WORKERS)
    if num_workers == 1:
        with ThreadPoolExecutor(1) as thread:
            yield ShardWorkers(lambda *arguments: thread.submit(writer.write, *arguments), 1, writer.heads)
        return
    # Not forked: a child of a process whose threads (Ray's, OpenMP's) hold locks waits for them for ever.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin_worker, initargs=(writer,))
    try:
        yield ShardWorkers(lambda *arguments: pool.submit(_write_in_worker, *arguments), num_workers, writer.heads)
    finally:
        pool.shutdown(cancel_futures=True)


def write_shards(
    folder: Path, examples: Iterable[Example], *, num_examples: int, workers: ShardWorkers, tell: Tell
) -> list[ShardRecord]:
    """Tokenizes a split into a folder, where shards of an earlier run that are whole stay.

    Args:
        folder: The split's; its name is the split's too.
        examples: Of the split.
        num_examples: How many they are.
        workers: Who tokenizes.
        tell: Is told how far it is.

    Returns:
        The records of all shards, in order.

    Raises:
        DataError: If a row cannot be rendered, or a worker died.
    """
    folder.mkdir(exist_ok=True)
    records: list[ShardRecord] = []
    under_way: deque[Future[ShardRecord]] = deque()
    progress = _Progress(folder.name, num_examples, tell)

    def keep(num_waiting: int) -> None:
        while len(under_way) > num_waiting:
            record = under_way.popleft().result()
            records.append(record)
            progress.add(record.num_examples)

    try:
        for number, (first_example, part) in enumerate(_cut(examples)):
            shard = folder / SHARD_NAME.format(number)
            done = _find_record(shard, first_example, len(part), heads=workers.heads)
            if done is not None:
                keep(0)
                records.append(done)
                progress.skip(done.num_examples)
                continue
            under_way.append(workers.submit(folder, number, first_example, part))
            keep(workers.num_workers * (1 + WAITING_SHARDS_PER_WORKER))
        keep(0)
    except BrokenProcessPool:
        # Its results and what is given to it raise this alike.
        raise DataError(
            "data: a process that tokenizes was killed, most likely for want of memory. "
            "Free some and start again: what is done is kept."
        ) from None
    return records


def _cut(examples: Iterable[Example]) -> Iterator[tuple[int, list[Example]]]:
    """The Examples of each shard, with the place of the first one."""
    first, part, num_characters = 0, [], 0
    for example in examples:
        part.append(example)
        num_characters += count_characters(example)
        if len(part) == SHARD_ROWS or num_characters >= SHARD_CHARACTERS:
            yield first, part
            first, part, num_characters = first + len(part), [], 0
    if part:
        yield first, part


def _find_record(shard: Path, first_example: int, num_examples: int, *, heads: Sequence[str]) -> ShardRecord | None:
    """The record of a shard that is whole; None where it is to be made."""
    try:
        values = load_json(record_path(shard))
        record = ShardRecord(**values | {"counts": SplitCounts(**values["counts"])})
        is_whole = map_table([shard], heads=heads).num_rows == len(record.origins)
    # Damage shows as an error of arrow, json or our own checks; each means: make it again.
    except Exception:
        return None
    is_same = (record.first_example, record.num_examples) == (first_example, num_examples)
    return record if is_whole and is_same else None


class _Progress:
    """Says how many rows are tokenized, and when the rest will be."""

    def __init__(self, name: str, num_examples: int, tell: Tell) -> None:
        self._name, self._num_examples, self._tell = name, num_examples, tell
        self._num_done = self._num_new = 0
        self._began_at = time.monotonic()

    def add(self, num_examples: int) -> None:
        """So many more are done."""
        self._num_new += num_examples
        self.skip(num_examples)

    def skip(self, num_examples: int) -> None:
        """So many more were done by an earlier run."""
        self._num_done += num_examples
        share = self._num_done / self._num_examples
        words = f"tokenizing the data: {self._num_done:,} of {self._num_examples:,} {self._name} rows, {share:.0%}"
        if self._num_new:
            per_row = (time.monotonic() - self._began_at) / self._num_new
            words += f", {format_duration(per_row * (self._num_examples - self._num_done))} left"
        self._tell(words)


# Of a worker process alone, which gets it when it starts and not with each shard: a vocabulary can be 17 MB.
_writer: ShardWriter | None = None


def _begin_worker(writer: ShardWriter) -> None:
    global _writer
    _writer = writer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process for each core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed: it would wait for its next shard for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_in_worker(folder: Path, number: int, first_example: int, examples: list[Example]) -> ShardRecord:
    assert _writer is not None, "the pool's initializer has set it"
    return _writer.write(folder, number, first_example, examples)
