"""artifacts.json: every file that a sweep or an evaluation has made, with what it is, its size and its hash.

It is written last. What goes on changing afterwards is not in it: locks, logs, what is under way, and the folders of
evaluations within a sweep's, which have their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qlora_ray import __version__
from qlora_ray.errors import RunError
from qlora_ray.runs.files import write_json
from qlora_ray.runs.inventory import describe_file, list_files

ARTIFACTS = "artifacts.json"
# Raise it when a key changes its meaning.
SCHEMA = 1
# Of a file in trials/: adapters of hundreds of trials are many GB to read. The winner's copy in best/ has its hash.
MAX_HASHED_BYTES = 64 * 1024**2

# What files are, by the first pattern that fits their path; `*` stands for any text, `/` too.
EVALUATION_FILES: Mapping[str, str] = {
    "settings.json": "what was asked, and the fingerprints of models and rows",
    "evaluation.json": "all scores and comparisons",
    "evaluation.md": "all scores and comparisons, to be read",
    "stats.json": "lengths and refusals of the answers, and what is wrong with them",
    "answers.html": "lengths and refusals, drawn, and answers side by side",
    "lengths.png": "lengths of the answers, as a plot",
    "refusals.png": "share of answers that decline, as a plot",
    "*/lm_eval.json": "results of the lm-evaluation-harness for a model",
    "*/*.losses.jsonl": "loss of each row of a prompt set, for a model",
    "*/*.jsonl": "answer to each prompt of a prompt set, by a model",
}
SWEEP_FILES: Mapping[str, str] = {
    "manifest.json": "config, space, plan, nodes, data, versions and seeds",
    "summary.json": "how the sweep ended",
    "events.jsonl": "every transition, with its time and reason",
    "study.journal": "Optuna's study",
    "trials.csv": "one row per trial",
    "report.html": "the report",
    "report.md": "the report, as Markdown",
    "loss_curves.png": "training and validation loss of the winner, as a plot",
    "best/adapter/*": "the winner's adapter, with the tokenizer",
    "best/record.json": "what the winner was, and what really ran",
    "best/scores.json": "verdict and scores of winner and base",
    "best/answers.jsonl": "answers of winner and base",
    "trials/*/record.json": "what a trial was, what really ran, and how it ended",
    "trials/*/metrics.jsonl": "a trial's losses",
    "trials/*/adapter/*": "a trial's adapter",
    "trials/*/state/*": "where an interrupted trial goes on",
    "trials/*/error.txt": "why a trial failed",
}
EVALUATION_LEFT_OUT = (ARTIFACTS, ".*")
SWEEP_LEFT_OUT = (
    *(ARTIFACTS, ".*", "*/.*", "live.json", "logs/*", "control/*", "exports.jsonl"),
    *("evaluation/*", "trials/*/evaluation/*"),
)


def write_evaluation_artifacts(folder: Path) -> None:
    """Writes artifacts.json of an evaluation's folder; raises RunError if it cannot be written."""
    _write(folder, EVALUATION_FILES, EVALUATION_LEFT_OUT)


def write_sweep_artifacts(folder: Path) -> None:
    """Writes artifacts.json of a sweep's folder; raises RunError if it cannot be written, or a folder not be read."""
    _write(folder, SWEEP_FILES, SWEEP_LEFT_OUT)


def renew_sweep_artifacts(folder: Path) -> None:
    """Writes artifacts.json of a sweep anew, after a change to its files; nothing where there is none."""
    if (folder / ARTIFACTS).exists():
        write_sweep_artifacts(folder)


def _write(folder: Path, kinds: Mapping[str, str], left_out: Sequence[str]) -> None:
    try:
        paths = list_files(folder)
    except OSError as error:
        raise RunError(
            f"{folder}: its files must be readable, got: {error.strerror or error}: {error.filename}. "
            f"Correct who may read it; {ARTIFACTS} is not written."
        ) from None
    files = []
    for path in paths:
        if any(fnmatchcase(path, pattern) for pattern in left_out):
            continue
        # Gone, or not to be read: what cannot be had is no artifact.
        with suppress(OSError):
            files.append({"path": path, "what": _name(path, kinds), **_measure(folder, path)})
    write_json(folder / ARTIFACTS, {"schema": SCHEMA, "qlora_ray": __version__, "files": files})


def _measure(folder: Path, path: str) -> dict[str, Any]:
    num_bytes = (folder / path).stat().st_size
    if path.startswith("trials/") and num_bytes > MAX_HASHED_BYTES:
        return {"bytes": num_bytes, "sha256": None}
    return describe_file(folder, path)


def _name(path: str, kinds: Mapping[str, str]) -> str | None:
    """What a file is; None for one that somebody else has put there."""
    return next((what for pattern, what in kinds.items() if fnmatchcase(path, pattern)), None)
