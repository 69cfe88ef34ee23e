"""Prepared data on disk, by fingerprint: arrow files and report.json, whole or not there at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Data
from qlora_ray.data.report import DataReport, PreparedData
from qlora_ray.data.tokenizing import TokenizedSplit
from qlora_ray.runs.modes import share_tree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHE_VERSION = 2  # raise it when the same input gives other tokens or another report
FOLDER_NAME_LENGTH = 32  # hex digits of the fingerprint
REPORT_NAME = "report.json"


def compute_fingerprint(
    data: Data,
    *,
    digests: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase,
    data_seed: int,
    version: int = CACHE_VERSION,
) -> str:
    """Returns the sha256 over all that decides the tokens, in hex.

    Args:
        data: The config section `data`.
        digests: The sha256 of each source's bytes, or a hub data set's fingerprint, by split.
        tokenizer: The base's tokenizer; its vocabulary, special tokens and chat template count.
        data_seed: Seed of the validation split, and of rows that are drawn.
        version: Of the fingerprint; an older one is what a sweep of that time has in its manifest.
    """
    document = {
        "version": version,
        "data": _deciding_values(data),
        "digests": dict(digests),
        "tokenizer": _tokenizer_digest(tokenizer),
        "data_seed": data_seed,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _deciding_values(data: Data) -> dict[str, Any]:
    """The section without what changes nothing: keys that came later leave the fingerprints of older sweeps alone."""
    values = data.model_dump(mode="json")
    if data.row_choice == "first":
        del values["row_choice"]
    if data.max_test_rows is None:
        del values["max_test_rows"]
    if data.bad_rows == "fail":
        del values["bad_rows"]
    return values


def load_prepared(cache_dir: Path, fingerprint: str) -> PreparedData | None:
    """Returns what was saved under the fingerprint; None if there is nothing, or it is damaged (then it is removed)."""
    folder = cache_dir / fingerprint[:FOLDER_NAME_LENGTH]
    if not folder.is_dir():
        return None
    try:
        return _read(folder, fingerprint)
    # A damaged file shows as an error of arrow, json, datasets or our own checks; each means: prepare again.
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        return None


def save_prepared(cache_dir: Path, prepared: PreparedData) -> None:
    """Writes to a temporary name, then renames. Does nothing if another process was faster.

    Raises:
        OSError: If the folder cannot be written.
    """
    import datasets

    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("int32")),
            "completion_mask": datasets.List(datasets.Value("int8")),
            "prompt_ids": datasets.List(datasets.Value("int32")),
            "references": datasets.Value("string"),
        }
    )
    fingerprint = prepared.report.fingerprint
    folder = cache_dir / fingerprint[:FOLDER_NAME_LENGTH]
    cache_dir.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache_dir))
    try:
        for name, split in prepared.splits.items():
            columns = {column: getattr(split, column) for column in features}
            with _no_progress_bars():
                datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(temporary / name))
        (temporary / REPORT_NAME).write_text(json.dumps(prepared.report.to_dict(), indent=2), encoding="utf-8")
        share_tree(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(folder: Path, fingerprint: str) -> PreparedData:
    report = DataReport.from_dict(json.loads((folder / REPORT_NAME).read_text(encoding="utf-8")))
    if report.fingerprint != fingerprint:
        raise ValueError(f"{folder}: must hold fingerprint {fingerprint}, got {report.fingerprint}")
    splits = {name: _read_split(folder / name, name, report) for name in report.num_rows}
    return PreparedData(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        report=dataclasses.replace(report, from_cache=True),
    )


def _read_split(folder: Path, name: str, report: DataReport) -> TokenizedSplit:
    import datasets

    table = datasets.load_from_disk(str(folder)).with_format("arrow")[:]
    split = TokenizedSplit(name, **{column: table[column].to_pylist() for column in table.column_names})
    found = (len(split), split.num_tokens, split.num_completion_tokens)
    expected = (report.num_rows[name], report.num_tokens[name], report.num_completion_tokens[name])
    if found != expected:
        raise ValueError(f"{folder}: rows, tokens and trained tokens must be {expected}, got {found}")
    return split


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        # Left over from whatever call came last; preparation passes its own.
        state.pop("truncation", None)
        state.pop("padding", None)
    else:
        state = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "name": tokenizer.name_or_path}
    document = [state, tokenizer.chat_template, str(tokenizer.bos_token), str(tokenizer.eos_token)]
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    import datasets

    were_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()
