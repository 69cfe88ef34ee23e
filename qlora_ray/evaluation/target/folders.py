"""What kind of folder one is, by its files: of a sweep, a trial, a bundle, a model or an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlora_ray.errors import ModelError, RunError
from qlora_ray.formats import list_first
from qlora_ray.regular_files import load_json, resolve_path
from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.paths import ADAPTER_CONFIG, MERGE_REPORT, NF4_SUFFIX
from qlora_ray.runs.records import Manifest, TrialRecord, read_record
from qlora_ray.runs.winner import BEST

MANIFEST = "manifest.json"
MODEL_CONFIG = "config.json"
RECORD = "record.json"
BUNDLE_CONFIG = "sweep.yaml"
BUNDLE_FILES = ("bundle.json", BUNDLE_CONFIG)


def read_manifest(folder: Path) -> Manifest | None:
    """A sweep's manifest; None where there is none, or a file of that name is something else's."""
    try:
        return read_record(folder / MANIFEST, Manifest)
    except RunError:
        return None


def find_record(*folders: Path) -> TrialRecord | None:
    """The trial's record in the first of the folders that has one; raises RunError if it is something else's."""
    found = next((folder / RECORD for folder in folders if (folder / RECORD).is_file()), None)
    return None if found is None else read_record(found, TrialRecord)


def read_merge_report(folder: Path) -> dict[str, Any] | None:
    """What a merged model was made of; None where there is no report.

    Bundles of before copies in NF4 had one of their own have it beside the copy, in the merged model's folder.
    """
    own = folder / MERGE_REPORT
    if own.is_file():
        return _read_report(own)
    folder = resolve_path(folder)
    beside = folder.parent / folder.name.removesuffix(NF4_SUFFIX) / MERGE_REPORT
    written = _read_report(beside) if folder.name.endswith(NF4_SUFFIX) and beside.is_file() else {}
    return written if written.get("nf4_copy") == folder.name else None


def _read_report(path: Path) -> dict[str, Any]:
    written = read_json(path)
    if not isinstance(written, dict) or not isinstance(written.get("adapter") or {}, dict):
        raise RunError(f"{path}: must be the report of a merge, got another JSON value. Merge again, or take it away.")
    return written


def find_trial_of(folder: Path) -> tuple[Path, str] | None:
    """The sweep and the trial that a folder is of: results/X/best and results/X/trials/0005."""
    folder = resolve_path(folder)
    if folder.name == BEST:
        sweep, trial = folder.parent, BEST
    elif folder.parent == SweepPaths(folder.parent.parent).trials:
        sweep, trial = folder.parent.parent, folder.name
    else:
        return None
    return (sweep, trial) if read_manifest(sweep) is not None else None


def find_bundle_of(folder: Path) -> Path | None:
    """The bundle that a folder is a part of: its adapter/, merged/ and the like."""
    parent = resolve_path(folder).parent
    has_adapter = (parent / "adapter" / ADAPTER_CONFIG).is_file()
    return parent if has_adapter and any((parent / name).is_file() for name in BUNDLE_FILES) else None


def describe_folder(path: Path) -> str:
    """Returns what a path holds, for a message: no such folder, a file, an empty folder, or its first five names."""
    if not path.exists():
        return "no such folder"
    if not path.is_dir():
        return "a file"
    names = sorted(inner.name for inner in path.iterdir())
    return f"a folder with {list_first(names)}" if names else "an empty folder"


def read_model_config(folder: Path) -> dict[str, Any]:
    """Returns a model folder's config.json.

    Raises:
        ModelError: If it cannot be read.
    """
    try:
        written = load_json(folder / MODEL_CONFIG)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / MODEL_CONFIG}: cannot be read: {error}. Save the model again.") from None
    if not isinstance(written, dict):
        got = type(written).__name__
        raise ModelError(f"{folder / MODEL_CONFIG}: must be a JSON object, got {got}. Save the model again.")
    return written
