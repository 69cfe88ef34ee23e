"""Which evaluation goes into a bundle: one of this adapter, and of this merged model, or none."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_ray.config.schema import Model
from qlora_ray.errors import RunError
from qlora_ray.exporting.damage import check_types
from qlora_ray.exporting.selection import Selection
from qlora_ray.modeling.identity import hash_adapter
from qlora_ray.modeling.loading import hash_base
from qlora_ray.runs import read_json, write_json
from qlora_ray.runs.score_records import EvaluationRecord
from qlora_ray.runs.typed_json import parse_record
from qlora_ray.scoring.comparison import UNREADABLE, Comparison, read_text

EVALUATION = "evaluation.json"
TABLE = "evaluation.md"
SETTINGS = "settings.json"
MERGED = "merged"
# Of the keys of evaluation.json these tell of models by name elsewhere than in lists of scores.
_OF_ALL_MODELS = ("exports", "lm_eval")
# The keys of evaluation.json that a model card tells.
_NEEDED = ("target", "rows", "settings", "scores", "comparisons", "notes", "models")


@dataclass(frozen=True)
class ModelPair:
    """Two models of an evaluation, held against each other on one measure of one prompt set."""

    prompts: str
    base_model: str
    tuned_model: str
    comparison: Comparison
    note: str | None = None


def read_pairs(evaluation: EvaluationRecord) -> list[ModelPair]:
    """The comparisons of an evaluation.

    Raises:
        KeyError, TypeError, ValueError: A value is missing, or is none that `evaluate` writes.
    """
    return [
        ModelPair(
            prompts=read_text(written["prompts"]),
            base_model=read_text(written["base_model"]),
            tuned_model=read_text(written["tuned_model"]),
            comparison=Comparison.from_dict(dict(written)),
            note=read_text(written["note"]) if written.get("note") else None,
        )
        for written in evaluation.comparisons
    ]


def evaluation_beside(to: Path) -> Path:
    """Where `evaluate` writes what it finds of a bundle: beside the folder."""
    return to.parent / f"{to.name}-evaluation"


def take_evaluation(selection: Selection, folder: Path, *, to: Path, notes: list[str]) -> EvaluationRecord | None:
    """Copies the evaluation of this very adapter into a bundle, and returns it.

    The one beside the bundle goes first: it is of the merged model too, which is the same file if it was merged the
    same way again. Figures of another merged model are left out.

    Args:
        folder: The bundle being written, with `adapter` and, if there is one, `merged`.
        to: The bundle's folder by its own name.
        notes: Takes a sentence for what was left out.

    Raises:
        RunError: If an evaluation is damaged.
    """
    adapter = hash_adapter(folder / "adapter")
    merged = hash_base(Model(name=str((folder / MERGED).absolute()))) if (folder / MERGED).is_dir() else None
    beside = evaluation_beside(to)
    found = _read(beside)
    if found is not None:
        problem = _problem(beside, found, adapter=adapter, merged=merged)
        if problem is None:
            _copy(beside, folder)
            return found
        notes.append(f"{beside} is of another {problem}: it was left out")
    source = selection.evaluation
    found = _read(source)
    if found is None:
        return None
    problem = _problem(source, found, adapter=adapter, merged=merged)
    if problem is None:
        _copy(source, folder)
        return found
    if problem != "merged model":
        notes.append(f"{source} is of another {problem}, not of trial {selection.trial}'s: it was left out")
        return None
    notes.append(f"{source}: its figures of a merged model are of another one than is in this bundle: left out")
    rest = _without_merged(read_json(source / EVALUATION))
    if not rest["scores"]:
        return None
    target = folder / "evaluation"
    target.mkdir()
    write_json(target / EVALUATION, rest)
    return parse_record(EvaluationRecord, rest)


@dataclass(frozen=True)
class _LoadedModel:
    hash: str | None = None


@dataclass(frozen=True)
class _Settings:
    """settings.json of an evaluation: the models by name."""

    models: Mapping[str, _LoadedModel] = field(default_factory=dict)


def _read(source: Path) -> EvaluationRecord | None:
    """The evaluation in a folder; None if there is none. Raises RunError if it is damaged."""
    path = source / EVALUATION
    written = read_json(path) if path.is_file() else None
    if not isinstance(written, dict):
        return None
    check_types(written, EvaluationRecord, where=path, keys=_NEEDED)
    found = parse_record(EvaluationRecord, written)
    if any(row.model is None or row.prompts is None for row in found.scores):
        raise RunError(f"{path}: each of its scores must name model and prompts, got one without. Evaluate again.")
    try:
        read_pairs(found)
    except UNREADABLE as error:
        raise RunError(
            f"{path}: its comparisons cannot be read: {type(error).__name__}: {error}. Evaluate again."
        ) from None
    return found


def _problem(source: Path, evaluation: EvaluationRecord, *, adapter: str, merged: str | None) -> str | None:
    """Of what the evaluation is another's: adapter or merged model; None if it is of these."""
    if evaluation.target.adapter != adapter:
        return "adapter"
    if not any(row.model == MERGED for row in evaluation.scores):
        return None
    written = read_json(source / SETTINGS) if (source / SETTINGS).is_file() else {}
    settings = parse_record(_Settings, written) if isinstance(written, dict) else _Settings()
    evaluated = settings.models.get(MERGED, _LoadedModel()).hash
    return None if merged is not None and evaluated == merged else "merged model"


def _without_merged(evaluation: dict[str, Any]) -> dict[str, Any]:
    """An evaluation without the figures of its merged model; answers and benchmarks of all models go with them."""
    rest = {key: value for key, value in evaluation.items() if key not in _OF_ALL_MODELS}
    rest["scores"] = [row for row in evaluation.get("scores") or [] if row["model"] != MERGED]
    pairs = evaluation.get("comparisons") or []
    rest["comparisons"] = [pair for pair in pairs if MERGED not in (pair["base_model"], pair["tuned_model"])]
    rest["models"] = {name: how for name, how in (evaluation.get("models") or {}).items() if name != MERGED}
    rest["verdict"] = next((pair["verdict"] for pair in rest["comparisons"] if pair["base_model"] == "base"), None)
    return rest


def _copy(source: Path, folder: Path) -> None:
    target = folder / "evaluation"
    target.mkdir()
    for name in (EVALUATION, TABLE):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
