"""Finds where the rows of each split come from: the shipped data, a file, a folder, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from qlora_ray.config.data_names import RowPart, SourceName, parse_source_name
from qlora_ray.config.schema import Data
from qlora_ray.data.examples import Row
from qlora_ray.data.mixture import MixedSource
from qlora_ray.data.reading import FILE_SUFFIXES, drop_filled_nulls, iterate_rows
from qlora_ray.data.splits import RowChoice
from qlora_ray.errors import DataError
from qlora_ray.regular_files import open_regular

if TYPE_CHECKING:
    from datasets import Dataset

DEFAULT_FRACTION = 0.1  # of train, held out for validation where neither the user nor the dataset has a split
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
# By which a folder of `save_to_disk` is known: of a Dataset, and of a DatasetDict.
SAVED_MARKS = ("state.json", "dataset_dict.json")
# Endings that say "a file was meant", though it is none that can be read.
OTHER_SUFFIXES = (".txt", ".tsv", ".xlsx", ".xls", ".arrow", ".gz", ".zip", ".zst", ".yaml", ".yml", ".pkl", ".md")


class Source(Protocol):
    """Rows of one split, with a digest that is known before they are parsed."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def digest(self) -> str:
        """Changes whenever the rows do."""

    def read(self, choice: RowChoice) -> Iterator[Row]:
        """Yields the rows that are chosen, in their order; it may be asked again."""


@dataclass(frozen=True)
class FileSource:
    """A file, or a part of its rows.

    `digest` is the sha256 of its bytes, with the part behind it, and `state` what tells that they have changed since.
    """

    name: str
    path: Path
    digest: str
    state: tuple[int, int]
    part: RowPart | None = None

    def read(self, choice: RowChoice) -> Iterator[Row]:
        """Yields the rows that are chosen, in their order.

        Raises:
            DataError: If the file cannot be parsed, holds no row, or has changed.
        """
        # Rows are named by their lines of the file.
        file = self.name.removesuffix(str(self.part or ""))
        with self._open() as stream:
            if self.part is None and (choice.max_rows is None or choice.takes_first):
                yield from islice(iterate_rows(file, stream), choice.max_rows)
                return
            num_rows = sum(1 for _ in iterate_rows(file, stream))
            rows = range(num_rows) if self.part is None else _rows_of(self.part, num_rows, name=self.name)
            chosen = {rows[at] for at in choice.choose(len(rows))}
            stream.seek(0)
            yield from (row for at, row in enumerate(iterate_rows(file, stream)) if at in chosen)

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        try:
            with open_regular(self.path) as stream:
                if file_state(stream) == self.state:
                    yield stream
                    return
        except OSError as error:
            raise DataError(f"{self.name}: must be a readable file, got {error.strerror}. Check it.") from None
        raise DataError(f"{self.name}: must stay as it is while it is read, got other bytes. Start again.")


@dataclass(frozen=True)
class HubSource:
    """One split of a dataset that `datasets.load_dataset` opened, or a part of it; `digest` is its fingerprint there,
    with the part behind it."""

    name: str
    dataset: Dataset
    digest: str
    part: RowPart | None = None

    def read(self, choice: RowChoice) -> Iterator[Row]:
        """Yields the rows that are chosen, in their order.

        Raises:
            DataError: If there is no row.
        """
        if len(self.dataset) == 0:
            raise DataError(f"{self.name}: a dataset must hold at least one row, got none. Take another split.")
        part = range(len(self.dataset)) if self.part is None else _rows_of(self.part, len(self.dataset), name=self.name)
        chosen = [part[at] for at in choice.choose(len(part))]
        rows = self.dataset.select(chosen)
        for at, values in zip(chosen, rows, strict=True):
            yield Row(f"{self.name} row {at + 1}", drop_filled_nulls(values))


def _rows_of(part: RowPart, num_rows: int, *, name: str) -> range:
    rows = part.of(num_rows)
    if not rows:
        raise DataError(f"{name}: a part must hold at least one row, got none of {num_rows}. Take a larger part.")
    return rows


@dataclass(frozen=True)
class SplitSources:
    """Where each split comes from.

    Without a validation source, `fraction` of train is held out, for `fraction_reason`.
    """

    train: Source
    validation: Source | None
    test: Source | None
    fraction: float | None
    fraction_reason: str = ""


def find_sources(data: Data) -> SplitSources:
    """Opens what `data.train`, `data.validation` and `data.test` name.

    `validation` and `test` may also name a split of train's own hub dataset.

    Raises:
        DataError: If a file is missing or of an unknown kind, or the hub cannot give a dataset or split.
    """
    _check_names(data)
    siblings: Mapping[str, Dataset] = {}
    train: Source
    named = SourceName("data.train")
    if isinstance(data.train, list):
        train = MixedSource([(_open_train(part.source)[1], part.weight) for part in data.train])
    else:
        named, train, siblings = _open_train(data.train)

    validation: Source | None = None
    fraction: float | None = None
    reason = ""
    own = next((name for name in VALIDATION_NAMES if name in siblings), None)
    if isinstance(data.validation, str):
        validation = _open_other(data.validation, "validation", named.place, siblings)
    elif data.validation is not None:
        fraction, reason = float(data.validation), "data.validation"
    elif data.train == "embedded":
        validation = _open_file(SourceName("embedded"), "validation", key="data.validation")
    elif own is not None:
        validation = _hub_source(named.place, own, siblings[own])
    else:
        fraction, reason = DEFAULT_FRACTION, "the default, as data.validation is not set"

    test: Source | None = None
    if data.test is not None:
        test = _open_other(data.test, "test", named.place, siblings)
    elif data.train == "embedded":
        test = _open_file(SourceName("embedded"), "test", key="data.test")
    return SplitSources(train, validation, test, fraction, reason)


def _open_train(name: str) -> tuple[SourceName, Source, Mapping[str, Dataset]]:
    """A source of training rows, and the splits of its data set; none of a file."""
    named = _parse(name, key="data.train")
    if not _is_hub_reference(named.place):
        return named, _open_file(named, "train", key="data.train"), {}
    siblings = _load_hub(named.place, key="data.train")
    return named, _pick_split(named, siblings, ("train",), key="data.train"), siblings


def _check_names(data: Data) -> None:
    several = [part.source for part in data.train] if isinstance(data.train, list) else [data.train]
    train = [("train", name) for name in several]
    for key, name in (*train, ("validation", data.validation), ("test", data.test)):
        if isinstance(name, str) and not name.strip():
            raise DataError(
                f"data.{key}: must name a file, folder or hub id, got an empty text. Name one, or drop the key."
            )
    if isinstance(data.validation, str) and re.fullmatch(r"[0-9.]+%?", data.validation):
        raise DataError(
            f"data.validation: a fraction must be a number below 1, got the text {data.validation!r}. "
            "Write it without quotes or a percent sign, as in 0.1."
        )


def _open_other(name: str, split: str, train_name: str, siblings: Mapping[str, Dataset]) -> Source:
    key = f"data.{split}"
    named = _parse(name, key=key)
    if named.split is None and named.place in siblings:
        return _hub_source(train_name, named.place, siblings[named.place], named.part)
    if not _is_hub_reference(named.place):
        return _open_file(named, split, key=key)
    wanted = VALIDATION_NAMES if split == "validation" else (split,)
    try:
        return _pick_split(named, _load_hub(named.place, key=key), wanted, key=key)
    except DataError as error:
        if siblings and "/" not in name:
            raise DataError(
                f"{key}: {train_name} has no split {name!r}, only {', '.join(siblings)}; nor is {name!r} a dataset. "
                "Name one of these splits, a file, or a hub id."
            ) from error
        raise


def _parse(name: str, *, key: str) -> SourceName:
    try:
        return parse_source_name(name)
    except ValueError as error:
        raise DataError(f"{key}: {error}") from None


def _is_hub_reference(name: str) -> bool:
    """Whether `load_dataset` opens the name: a folder, or a hub id (`owner/name`, or `owner/name:config`)."""
    if name == "embedded":
        return False
    if Path(name).expanduser().is_dir():
        return True
    looks_like_path = name.startswith(("./", "../", "/", "~")) or "\\" in name or name.count("/") > 1
    return not (
        looks_like_path or Path(name).suffix.lower() in (*FILE_SUFFIXES, *OTHER_SUFFIXES) or Path(name).is_file()
    )


def _open_file(named: SourceName, split: str, *, key: str) -> FileSource:
    name = named.place
    if named.split is not None or (named.brackets and name == "embedded"):
        raise DataError(
            f"{key}: only data sets have splits, and the embedded rows are taken whole, got {name}{named.brackets}. "
            f"Drop the brackets, or set data.max_{split}_rows."
        )
    if name == "embedded":
        from qlora_ray import embedded

        paths = {"train": embedded.train_path, "validation": embedded.validation_path, "test": embedded.test_path}
        path = paths[split]()
        name = f"embedded/{path.name}"
    else:
        path = Path(name).expanduser()
    try:
        if path.exists() and not path.is_file():
            # A pipe is empty after its first reader, and a device may never end; the data is read again by a resume.
            raise DataError(f"{key}: must be a regular file, got {name}, a pipe or device. Write its rows to a file.")
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            state = file_state(stream)
    except FileNotFoundError:
        raise DataError(
            f"{key}: must be a file that exists, got {name} (looked in {Path.cwd()}). Correct the path."
        ) from None
    except OSError as error:
        raise DataError(f"{key}: must be a readable file, got {name} ({error.strerror}). Check it.") from None
    if path.suffix.lower() not in FILE_SUFFIXES:
        raise DataError(
            f"{key}: a data file must end in {', '.join(FILE_SUFFIXES)}, got {name}. "
            "Convert it, or rename it if it is one of these."
        )
    words = str(named.part or "")
    return FileSource(name + words, path.absolute(), digest + words, state, named.part)


def file_state(stream: BinaryIO) -> tuple[int, int]:
    """The size and time of an open file."""
    found = os.fstat(stream.fileno())
    return found.st_size, found.st_mtime_ns


def _load_hub(name: str, *, key: str) -> Mapping[str, Dataset]:
    import datasets

    path = Path(name).expanduser()
    if any((path / mark).is_file() for mark in SAVED_MARKS):
        return _load_saved(path, name, key=key)
    repository, _, config = (str(path), "", "") if path.is_dir() else name.partition(":")
    try:
        splits = datasets.load_dataset(repository, config or None)
    # load_dataset raises what its HTTP client, the hub, fsspec and the parsers raise: no common class but this one.
    except Exception as error:
        where = "a folder" if path.is_dir() else "a file here or a dataset on the hub"
        message = f"{key}: must be {where} that can be loaded, got {name} ({_cause(error)}). {_advice(error)}"
        raise DataError(message) from error
    return splits if isinstance(splits, dict) else {"train": splits}


def _load_saved(path: Path, name: str, *, key: str) -> Mapping[str, Dataset]:
    """A folder that `save_to_disk` of a Dataset or DatasetDict has written."""
    import datasets

    try:
        splits = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(
            f"{key}: must be a whole folder of save_to_disk, got {name} ({_cause(error)}). Save it again."
        ) from error
    return splits if isinstance(splits, dict) else {"train": splits}


def _cause(error: Exception) -> str:
    # The chain's first error says what is wrong (a parser's words); the last one only that loading failed.
    root: BaseException = error
    if type(error).__name__.startswith("DatasetGeneration"):
        while root.__cause__ is not None:
            root = root.__cause__
    lines = str(root).strip().splitlines()
    return f"{type(root).__name__}: {lines[0].rstrip('.')}" if lines else type(root).__name__


def _advice(error: Exception) -> str:
    text = f"{type(error).__name__} {error}".lower()
    if "config name is missing" in text or "builderconfig" in text:
        return "Name one of its configs after a colon, as in openai/gsm8k:main."
    if "offline" in text or isinstance(error, ConnectionError | TimeoutError) or "connect" in text or "resolve" in text:
        return "Check the network and HF_HUB_OFFLINE, or give a local file."
    if "gated" in text or "401" in text or "403" in text:
        return "Ask for access on its page, and set HF_TOKEN."
    return "Check the spelling; set HF_TOKEN if it is private; a local file needs its extension."


def _pick_split(named: SourceName, splits: Mapping[str, Dataset], wanted: tuple[str, ...], *, key: str) -> HubSource:
    name = named.place
    wanted = wanted if named.split is None else (named.split,)
    found = next((split for split in wanted if split in splits), None)
    if found is None and len(splits) == 1 and named.split is None:
        found = next(iter(splits))
    if found is None:
        raise DataError(
            f"{key}: {name} must have a split {' or '.join(wanted)}, got {', '.join(splits)}. "
            f"Name the one that is meant in brackets, as {name}[{next(iter(splits))}]."
        )
    return _hub_source(name, found, splits[found], named.part)


def _hub_source(name: str, split: str, dataset: Dataset, part: RowPart | None = None) -> HubSource:
    words = "" if part is None else str(part)
    return HubSource(f"{name} {split}{words}", dataset, f"{dataset._fingerprint}{words}", part)
