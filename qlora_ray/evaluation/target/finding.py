"""Finds out what there is to evaluate: a sweep, an adapter, a bundle, a model folder or a hub id."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from qlora_ray.config.reuse import is_overridden, read_intent
from qlora_ray.config.schema import Model, SweepConfig
from qlora_ray.errors import ConfigError, ModelError, RunError
from qlora_ray.evaluation.downloads import download_adapter
from qlora_ray.evaluation.target.folders import (
    BUNDLE_CONFIG,
    MODEL_CONFIG,
    RECORD,
    describe_folder,
    find_bundle_of,
    find_trial_of,
    read_manifest,
    read_merge_report,
    read_record,
)
from qlora_ray.evaluation.target.provenance import Origin, subject_of_adapter, subject_of_merged
from qlora_ray.evaluation.target.target import Request, Subject
from qlora_ray.modeling.identity import ADAPTER_CONFIG
from qlora_ray.modeling.loading import EMBEDDED, pin_revision
from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.winner import BEST, find_trial

# owner/name, or a name alone, as huggingface_hub.validate_repo_id has it.
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


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
    if subject.base is not None:
        # What is hashed, loaded and recorded from here on is one commit.
        subject = replace(subject, base=pin_revision(subject.base))
    return _with_merged(subject, request.merged)


def _read_sweep(folder: Path, request: Request) -> Subject:
    paths = SweepPaths(folder)
    trial, is_winner = find_trial(paths, request.trial)
    home = paths.best if is_winner else paths.trial(trial).root
    origin = Origin(read_json(home / RECORD), read_manifest(folder))
    to = (folder if is_winner else home) / "evaluation"
    subject = subject_of_adapter(home / "adapter", origin, request, path=str(folder), to=to)
    return replace(subject, kind="sweep", trial=trial)


def _read_adapter(folder: Path, request: Request) -> Subject:
    folder = folder.resolve()
    bundle = find_bundle_of(folder)
    if bundle is not None and folder.name == "adapter":
        return replace(_read_bundle(bundle, request), kind="adapter", path=str(folder), merged=None)
    # results/X/best/adapter and results/X/trials/0005/adapter.
    sweep = next((up for up in folder.parents[1:3] if read_manifest(up) is not None), None)
    origin = Origin(read_record(folder, folder.parent), read_manifest(sweep) if sweep else None)
    to = _beside(folder)
    if sweep is not None:
        to = (sweep if folder.parent == sweep / BEST else folder.parent) / "evaluation"
    return subject_of_adapter(folder, origin, request, path=str(folder), to=to)


def _read_bundle(folder: Path, request: Request) -> Subject:
    # Not in it: a bundle lists its files with their hashes.
    to = _beside(folder)
    subject = subject_of_adapter(folder / "adapter", _origin_of_bundle(folder), request, path=str(folder), to=to)
    merged = folder / "merged"
    return replace(subject, kind="bundle", merged=merged if (merged / MODEL_CONFIG).is_file() else None)


def _origin_of_bundle(folder: Path) -> Origin:
    """What a bundle's parts came with: its record, and its sweep's manifest where it lies in one, else its YAML."""
    manifest = next(filter(None, map(read_manifest, folder.resolve().parents[:2])), None)
    own = folder / BUNDLE_CONFIG
    return Origin(read_record(folder), manifest, own if manifest is None and own.is_file() else None)


def _beside(folder: Path) -> Path:
    """Where the evaluation of a folder goes that is not ours to write into; each has its own."""
    return folder.with_name(f"{folder.name}-evaluation")


def _read_model(folder: Path, request: Request) -> Subject:
    folder = folder.resolve()
    bundle = find_bundle_of(folder)
    to = _beside(folder) if bundle is None else bundle.parent / f"{bundle.name}-{folder.name}-evaluation"
    if read_merge_report(folder) is None:
        config = read_intent(None, config=request.config, overrides=request.overrides)
        model = config.model.model_copy(update={"name": str(folder), "revision": None})
        return _plain_model(model, config, path=str(folder), to=to)
    if is_overridden(request.overrides, "model.quantization"):
        raise ConfigError(
            f"--set model.quantization: {folder} is a merged model, which is evaluated as it is stored. "
            "Leave it out, or merge with another storage."
        )
    if bundle is not None:
        origin = _origin_of_bundle(bundle)
    else:
        origin = Origin(manifest=next(filter(None, map(read_manifest, folder.parents[:2])), None))
    return subject_of_merged(folder, origin, request, to=to)


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


def _with_merged(subject: Subject, merged: Path | None) -> Subject:
    """The subject with the merged model that was named, checked to be of this adapter where its report says."""
    merged = merged or subject.merged
    if merged is None:
        return subject
    if not (merged / MODEL_CONFIG).is_file():
        found = describe_folder(merged)
        raise ModelError(f"--merged {merged}: must be a model folder with {MODEL_CONFIG}, got {found}.")
    return replace(subject, merged=merged)
