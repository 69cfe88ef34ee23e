"""Finds out what there is to evaluate: a sweep, an adapter, a bundle, a model folder or a hub id, and what it needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from qlora_ray.config.schema import Model, Quantization, SweepConfig
from qlora_ray.errors import ConfigError, ModelError, RunError
from qlora_ray.evaluation.downloads import download_adapter
from qlora_ray.evaluation.folders import (
    BUNDLE_CONFIG,
    MODEL_CONFIG,
    RECORD,
    describe_folder,
    find_bundle_of,
    find_trial_of,
    read_manifest,
    read_record,
)
from qlora_ray.evaluation.intent import distrust, is_overridden, read_intent
from qlora_ray.evaluation.trials import BEST, find_trial
from qlora_ray.modeling.identity import ADAPTER_CONFIG, read_adapter
from qlora_ray.modeling.loading import EMBEDDED, resolve_model_name
from qlora_ray.runs import SweepPaths, read_json

ModelName = Literal["base", "adapter", "merged"]
MODEL_NAMES: tuple[ModelName, ...] = ("base", "adapter", "merged")
MERGE_REPORT = "merge_report.json"
# owner/name, or a name alone, as huggingface_hub.validate_repo_id has it.
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


@dataclass(frozen=True)
class Request:
    """What the command line says of the target.

    Attributes:
        trial: A trial of a sweep instead of its winner.
        merged: A merged model to hold against base and adapter.
        config: A YAML whose data, evaluate and model sections are used in place of the sweep's.
        overrides: `a.b=value` texts.
    """

    trial: str | None = None
    merged: Path | None = None
    config: Path | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and all that loading it needs.

    Attributes:
        kind: What the target was found to be.
        base: The base that is scored, alone and under the adapter; None for a merged model by itself.
        quantization: How `base` is stored; None: as its own folder says, else unquantized in its own dtype.
        quantization_reason: Where that comes from, in words.
        base_hash: The base's fingerprint as the adapter's record has it.
        manifest: The manifest of the sweep it came from.
        record: The record of the trial that made the adapter.
        to: Where its evaluation is written unless the user says otherwise.
        notes: What the user should know, in words.
    """

    kind: Literal["sweep", "adapter", "bundle", "model"]
    path: str
    config: SweepConfig
    base: Model | None
    quantization: Quantization | None
    quantization_reason: str
    to: Path
    adapter: Path | None = None
    merged: Path | None = None
    trial: str | None = None
    base_hash: str | None = None
    manifest: dict[str, Any] | None = None
    record: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def available(self) -> tuple[ModelName, ...]:
        """The models there are."""
        there = {"base": self.base, "adapter": self.adapter, "merged": self.merged}
        return tuple(name for name in MODEL_NAMES if there[name] is not None)


def find_subject(target: str, request: Request) -> Subject:
    """Finds out what the target is.

    Raises:
        RunError: If there is nothing of that name, or a sweep lacks the trial or a winner.
        ModelError: If an adapter or model folder is not whole, or its base is missing.
        ConfigError: If the config is wrong.
    """
    folder = Path(target).expanduser()
    part = find_trial_of(folder)
    if not folder.exists():
        subject = _find_elsewhere(target, request)
    elif read_manifest(folder) is not None:
        subject = _read_sweep(folder, request)
    elif part is not None and request.trial is None:
        return find_subject(str(part[0]), replace(request, trial=part[1]))
    elif (folder / ADAPTER_CONFIG).is_file():
        subject = _read_adapter(folder, request)
    elif (folder / "adapter" / ADAPTER_CONFIG).is_file():
        subject = _read_bundle(folder, request)
    elif (folder / MODEL_CONFIG).is_file():
        subject = _read_model(folder, request)
    else:
        raise RunError(
            f"{target}: must be a sweep (manifest.json), an adapter ({ADAPTER_CONFIG}), a bundle (adapter/) or a model "
            f"({MODEL_CONFIG}), got {describe_folder(folder)}. Name one of these, or a hub id."
        )
    if request.trial is not None and subject.kind != "sweep":
        raise ConfigError(f"--trial {request.trial}: only a sweep has trials, and {target} is of kind {subject.kind}.")
    return _with_merged(subject, request.merged)


@dataclass(frozen=True)
class _Origin:
    """What came with an adapter: its trial's record, and its sweep's config as a manifest or a YAML."""

    record: dict[str, Any] | None = None
    manifest: dict[str, Any] | None = None
    config: Path | None = None


def _read_sweep(folder: Path, request: Request) -> Subject:
    paths = SweepPaths(folder)
    trial, is_winner = find_trial(paths, request.trial)
    home = paths.best if is_winner else paths.trial(trial).root
    origin = _Origin(read_json(home / RECORD), read_manifest(folder))
    subject = _with_adapter(home / "adapter", origin, request, path=str(folder))
    return replace(subject, kind="sweep", trial=trial, to=(folder if is_winner else home) / "evaluation")


def _read_adapter(folder: Path, request: Request) -> Subject:
    folder = folder.resolve()
    bundle = find_bundle_of(folder)
    if bundle is not None and folder.name == "adapter":
        return replace(_read_bundle(bundle, request), kind="adapter", path=str(folder), merged=None)
    # results/X/best/adapter and results/X/trials/0005/adapter.
    sweep = next((up for up in folder.parents[1:3] if read_manifest(up) is not None), None)
    origin = _Origin(read_record(folder, folder.parent), read_manifest(sweep) if sweep else None)
    subject = _with_adapter(folder, origin, request, path=str(folder))
    if sweep is None:
        return replace(subject, to=_beside(folder))
    return replace(subject, to=(sweep if folder.parent == sweep / BEST else folder.parent) / "evaluation")


def _read_bundle(folder: Path, request: Request) -> Subject:
    manifest = next(filter(None, map(read_manifest, folder.resolve().parents[:2])), None)
    own = folder / BUNDLE_CONFIG
    origin = _Origin(read_record(folder), manifest, own if manifest is None and own.is_file() else None)
    subject = _with_adapter(folder / "adapter", origin, request, path=str(folder))
    merged = folder / "merged"
    return replace(
        subject,
        kind="bundle",
        merged=merged if (merged / MODEL_CONFIG).is_file() else None,
        # Not in it: a bundle lists its files with their hashes.
        to=_beside(folder),
    )


def _beside(folder: Path) -> Path:
    """Where the evaluation of a folder goes that is not ours to write into; each has its own."""
    return folder.with_name(f"{folder.name}-evaluation")


def _with_adapter(adapter: Path, origin: _Origin, request: Request, *, path: str) -> Subject:
    """A subject of kind adapter: its base by name, stored as its record says."""
    facts = read_adapter(adapter)
    file = request.config or origin.config
    config = read_intent(origin.manifest, config=file, overrides=request.overrides)
    notes: list[str] = []
    if request.config is None:
        config, notes = distrust(config, request.overrides)
    written = (origin.record or {}).get("base") or {}
    is_chosen = is_overridden(request.overrides, "model.name") or (
        "name" in config.model.model_fields_set and (origin.manifest is not None or file is not None)
    )
    if is_chosen:
        name, revision = config.model.name, config.model.revision
    elif written.get("name"):
        name, revision = str(written["name"]), written.get("revision")
    elif facts.base is not None:
        name, revision = facts.base, facts.config.get("revision")
    else:
        raise ModelError(f"{adapter}: must name its base, got none. Name it with --set model.name=.")
    base = config.model.model_copy(update={"name": name, "revision": revision})
    _check_there(base, where=str(adapter))
    quantization, reason = _quantization_of(config, origin, request)
    if not reason:
        reason = "nf4 with double quantization, QLoRA's own: no record says how it was trained"
        notes.append(f"{adapter}: loaded on {reason}; --set model.quantization.method= says otherwise")
    is_asked = request.config is not None and "quantization" in config.model.model_fields_set
    if is_asked and config.model.quantization.method != quantization.method:
        notes.append(
            f"the base is loaded in {quantization.method}, {reason}; --config has {config.model.quantization.method}, "
            "which only --set model.quantization.method= can ask for"
        )
    return Subject(
        "adapter",
        path,
        config,
        base,
        quantization,
        reason,
        _beside(adapter),
        adapter=adapter,
        trial=(origin.record or {}).get("trial"),
        base_hash=written.get("hash"),
        manifest=origin.manifest,
        record=origin.record,
        notes=notes,
    )


def _quantization_of(config: SweepConfig, origin: _Origin, request: Request) -> tuple[Quantization, str]:
    """The adapter's quantization, and where it is from: the command line, its record, its sweep, or nowhere."""
    ran = ((origin.record or {}).get("ran") or {}).get("quantization")
    if is_overridden(request.overrides, "model.quantization"):
        return config.model.quantization, "as --set says"
    if ran:
        double = bool(ran.get("double_quantization", True))
        return Quantization(method=ran["method"], double_quantization=double), "as its record says"
    if origin.manifest is not None or "quantization" in config.model.model_fields_set:
        return config.model.quantization, "as the config says"
    return Quantization(), ""


def _read_model(folder: Path, request: Request) -> Subject:
    config = read_intent(None, config=request.config, overrides=request.overrides)
    model = config.model.model_copy(update={"name": str(folder), "revision": None})
    folder = folder.resolve()
    bundle = find_bundle_of(folder)
    to = _beside(folder) if bundle is None else bundle.parent / f"{bundle.name}-{folder.name}-evaluation"
    subject = _plain_model(model, config, path=str(folder), to=to)
    if not (folder / MERGE_REPORT).is_file():
        return subject
    if is_overridden(request.overrides, "model.quantization"):
        raise ConfigError(
            f"--set model.quantization: {folder} is a merged model, which is evaluated as it is stored. "
            "Leave it out, or merge with another storage."
        )
    return replace(subject, base=None, quantization=None, merged=folder)


def _plain_model(model: Model, config: SweepConfig, *, path: str, to: Path) -> Subject:
    is_said = "quantization" in config.model.model_fields_set
    quantization = config.model.quantization if is_said else None
    reason = "as the config says" if is_said else "as its own config.json says"
    return Subject("model", path, config, model, quantization, reason, to)


def _find_elsewhere(target: str, request: Request) -> Subject:
    """`embedded`, or a model or adapter on the hub."""
    first, _, rest = target.partition("/")
    if not HUB_ID.match(target) or (rest and Path(first).is_dir()):
        raise RunError(f"{target}: no such folder (looked in {Path.cwd()}). Correct the path, or give a hub id.")
    config = read_intent(None, config=request.config, overrides=request.overrides)
    to = Path("results") / f"evaluation-{target.replace('/', '--')}"
    if target != EMBEDDED:
        adapter = download_adapter(target)
        if adapter is not None:
            read = _read_adapter if (adapter / ADAPTER_CONFIG).is_file() else _read_bundle
            return replace(read(adapter, request), path=target, to=to)
    return _plain_model(config.model.model_copy(update={"name": target}), config, path=target, to=to)


def _check_there(base: Model, *, where: str) -> None:
    name = resolve_model_name(base.name)
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path and not (Path(name) / MODEL_CONFIG).is_file():
        found = "a folder without config.json" if Path(name).is_dir() else "no such folder"
        raise ModelError(f"{where}: its base must be there, got {name} ({found}). Name it with --set model.name=.")


def _with_merged(subject: Subject, merged: Path | None) -> Subject:
    """The subject with the merged model that was named, checked to be of this adapter where its report says."""
    merged = merged or subject.merged
    if merged is None:
        return subject
    if not (merged / MODEL_CONFIG).is_file():
        found = describe_folder(merged)
        raise ModelError(f"--merged {merged}: must be a model folder with {MODEL_CONFIG}, got {found}.")
    return replace(subject, merged=merged)
