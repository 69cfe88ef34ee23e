"""Prepared data on disk, by fingerprint: arrow files and report.json, whole or not there at all."""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.heads import Head
from qlora_ray.config.schema import Data
from qlora_ray.data.arrow_files import SHARD_NAME, SHARD_PATTERN, map_table, write_table
from qlora_ray.data.report import DataReport, PreparedData
from qlora_ray.data.tokenized import TokenizedSplit
from qlora_ray.regular_files import load_json
from qlora_ray.runs.modes import share_tree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHE_VERSION = 4  # raise it when the same input gives other tokens or another report
FOLDER_NAME_LENGTH = 32  # hex digits of the fingerprint
REPORT_NAME = "report.json"


def compute_fingerprint(
    data: Data,
    *,
    digests: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase,
    data_seed: int,
    heads: Mapping[str, Head] | None = None,
    version: int = CACHE_VERSION,
) -> str:
    """Returns the sha256 over all that decides the tokens, in hex.

    Args:
        data: The config section `data`.
        digests: The sha256 of each source's bytes, or a hub data set's fingerprint, by split.
        tokenizer: The base's tokenizer; its vocabulary, special tokens and chat template count.
        data_seed: Seed of the validation split, and of rows that are drawn.
        heads: The config section `heads`; columns and classes count.
        version: Of the fingerprint; an older one is what a sweep of that time has in its manifest.
    """
    document: dict[str, Any] = {
        "version": version,
        "data": _deciding_values(data),
        "digests": dict(digests),
        "tokenizer": _tokenizer_digest(tokenizer),
        "data_seed": data_seed,
    }
    if heads:
        document["heads"] = [[name, head.column, head.classes] for name, head in heads.items()]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _deciding_values(data: Data) -> dict[str, Any]:
    """The section without what changes nothing: keys that came later leave the fingerprints of older sweeps alone."""
    values = data.model_dump(mode="json")
    if data.row_choice == "first":
        del values["row_choice"]
    if data.max_test_rows is None:
        del values["max_test_rows"]
    if data.loss == "completion":
        del values["loss"]
    if data.bad_rows == "fail":
        del values["bad_rows"]
    return values


def folder_name(fingerprint: str) -> str:
    """What the folder of prepared data is called in a cache."""
    return fingerprint[:FOLDER_NAME_LENGTH]


def load_prepared(cache_dir: Path, fingerprint: str) -> PreparedData | None:
    """Returns what was saved under the fingerprint; None if there is nothing, or it is damaged (then it is removed)."""
    folder = cache_dir / folder_name(fingerprint)
    if not folder.is_dir():
        return None
    try:
        return map_prepared(folder, fingerprint)
    # A damaged file shows as an error of arrow, json or our own checks; each means: prepare again.
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        return None


def map_prepared(folder: Path, fingerprint: str) -> PreparedData:
    """Returns the prepared data of a folder; its rows stay in the files, which are mapped into memory.

    Raises:
        Exception: If it is not whole, or other data: what arrow, json and our own checks raise.
    """
    report = DataReport.from_dict(load_json(folder / REPORT_NAME))
    if report.fingerprint != fingerprint:
        raise ValueError(f"{folder}: must hold fingerprint {fingerprint}, got {report.fingerprint}")
    splits = {name: _map_split(folder / name, name, report) for name in report.num_rows}
    return PreparedData(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        report=dataclasses.replace(report, from_cache=True),
        folder=folder,
    )


def save_prepared(cache_dir: Path, prepared: PreparedData) -> PreparedData:
    """Writes to a temporary name, then renames; the folder of another process that was faster stands.

    Returns:
        The same data, with its folder.

    Raises:
        OSError: If the folder cannot be written.
    """
    folder = cache_dir / folder_name(prepared.report.fingerprint)
    cache_dir.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache_dir))
    try:
        for name, split in prepared.splits.items():
            (temporary / name).mkdir()
            write_table(temporary / name / SHARD_NAME.format(0), split.table)
        write_report(temporary, prepared.report)
        take_name(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return dataclasses.replace(prepared, folder=folder)


def save_for_this_process(prepared: PreparedData) -> PreparedData:
    """Writes to a temporary folder, which goes when this process ends: for where no cache can be written.

    Raises:
        OSError: If no temporary folder can be written either.
    """
    return save_prepared(scratch_folder(), prepared)


def scratch_folder() -> Path:
    """A temporary folder that goes when this process ends.

    Raises:
        OSError: If none can be made.
    """
    scratch = Path(tempfile.mkdtemp(prefix="qlora_ray-data-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return scratch


def write_report(folder: Path, report: DataReport) -> None:
    """Writes the report into the folder of its data."""
    (folder / REPORT_NAME).write_text(json.dumps(report.to_dict(), indent=2), encoding="utf-8")


def take_name(whole: Path, folder: Path) -> None:
    """Gives a folder that is whole its name; that of another process that was faster stands.

    Raises:
        OSError: If it cannot be renamed.
    """
    share_tree(whole)
    try:
        whole.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(whole, ignore_errors=True)


def _map_split(folder: Path, name: str, report: DataReport) -> TokenizedSplit:
    split = TokenizedSplit(name, map_table(sorted(folder.glob(SHARD_PATTERN)), heads=tuple(report.classes)))
    found = (len(split), split.num_tokens)
    expected = (report.num_rows[name], report.num_tokens[name])
    if found != expected:
        raise ValueError(f"{folder}: rows and tokens must be {expected}, got {found}")
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
