"""Finds out what there is to evaluate: a sweep, an adapter, a bundle, a model folder or a hub id."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from qlora_ray.config.reuse import is_overridden, read_intent
from qlora_ray.config.schema import Model, SweepConfig
from qlora_ray.errors import ConfigError, ModelError, RunError
from qlora_ray.evaluation.target.folders import (
    BUNDLE_CONFIG,
    MODEL_CONFIG,
    RECORD,
    describe_folder,
    find_bundle_of,
    find_record,
    find_trial_of,
    read_manifest,
    read_merge_report,
)
from qlora_ray.evaluation.target.provenance import Origin, target_of_adapter, target_of_merged
from qlora_ray.evaluation.target.target import Request, Target
from qlora_ray.modeling.hub import reach_repository
from qlora_ray.modeling.loading import EMBEDDED, pin_revision
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.links import check_links
from qlora_ray.runs.paths import ADAPTER_CONFIG
from qlora_ray.runs.records import TrialRecord, read_record
from qlora_ray.runs.winner import BEST, find_trial

# Of a repository: no pickles. A bundle's config is YAML.
DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.yaml")

# owner/name, or a name alone, as huggingface_hub.validate_repo_id has it.
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def find_target(location: str, request: Request) -> Target:
    """Finds out what the location is.

    Raises:
        RunError: If there is nothing of that name, or a sweep lacks the trial or a winner.
        ModelError: If an adapter or model folder is not whole, or its base is missing.
        ConfigError: If the config is wrong.
    """
    folder = Path(location).expanduser()
    part = find_trial_of(folder)
    if not folder.exists():
        target = _find_elsewhere(location, request)
    elif read_manifest(folder) is not None:
        target = _read_sweep(folder, request)
    elif part is not None and request.trial is None:
        return find_target(str(part[0]), replace(request, trial=part[1]))
    elif (folder / ADAPTER_CONFIG).is_file():
        target = _read_adapter(folder, request)
    elif (folder / "adapter" / ADAPTER_CONFIG).is_file():
        target = _read_bundle(folder, request)
    elif (folder / MODEL_CONFIG).is_file():
        target = _read_model(folder, request)
    else:
        raise RunError(
            f"{location}: must be a sweep (manifest.json), an adapter ({ADAPTER_CONFIG}), a bundle (adapter/) or a "
            f"model ({MODEL_CONFIG}), got {describe_folder(folder)}. Name one of these, or a hub id."
        )
    if request.trial is not None and target.kind != "sweep":
        raise ConfigError(f"--trial {request.trial}: only a sweep has trials, and {location} is of kind {target.kind}.")
    if target.base is not None:
        # What is hashed, loaded and recorded from here on is one commit.
        target = replace(target, base=pin_revision(target.base))
    return _with_merged(target, request.merged)


def _read_sweep(folder: Path, request: Request) -> Target:
    check_links(folder)
    paths = SweepPaths(folder)
    trial, is_winner = find_trial(paths, request.trial)
    home = paths.best if is_winner else paths.trial(trial).root
    origin = Origin(read_record(home / RECORD, TrialRecord), read_manifest(folder))
    to = (folder if is_winner else home) / "evaluation"
    target = target_of_adapter(home / "adapter", origin, request, path=str(folder), to=to)
    return replace(target, kind="sweep", trial=trial)


def _read_adapter(folder: Path, request: Request) -> Target:
    folder = folder.resolve()
    bundle = find_bundle_of(folder)
    if bundle is not None and folder.name == "adapter":
        return replace(_read_bundle(bundle, request), kind="adapter", path=str(folder), merged=None)
    # results/X/best/adapter and results/X/trials/0005/adapter.
    sweep = next((up for up in folder.parents[1:3] if read_manifest(up) is not None), None)
    if sweep is not None:
        check_links(sweep)
    origin = Origin(find_record(folder, folder.parent), read_manifest(sweep) if sweep else None)
    to = _beside(folder)
    if sweep is not None:
        to = (sweep if folder.parent == sweep / BEST else folder.parent) / "evaluation"
    return target_of_adapter(folder, origin, request, path=str(folder), to=to)


def _read_bundle(folder: Path, request: Request) -> Target:
    # Not in it: a bundle lists its files with their hashes.
    to = _beside(folder)
    target = target_of_adapter(folder / "adapter", _origin_of_bundle(folder), request, path=str(folder), to=to)
    merged = folder / "merged"
    return replace(target, kind="bundle", merged=merged if (merged / MODEL_CONFIG).is_file() else None)


def _origin_of_bundle(folder: Path) -> Origin:
    """What a bundle's parts came with: its record, and its sweep's manifest where it lies in one, else its YAML."""
    manifest = next(filter(None, map(read_manifest, folder.resolve().parents[:2])), None)
    own = folder / BUNDLE_CONFIG
    return Origin(find_record(folder), manifest, own if manifest is None and own.is_file() else None)


def _beside(folder: Path) -> Path:
    """Where the evaluation of a folder goes that is not ours to write into; each has its own."""
    return folder.with_name(f"{folder.name}-evaluation")


def _read_model(folder: Path, request: Request) -> Target:
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
    return target_of_merged(folder, origin, request, to=to)


def _plain_model(model: Model, config: SweepConfig, *, path: str, to: Path) -> Target:
    is_said = "quantization" in config.model.model_fields_set
    quantization = config.model.quantization if is_said else None
    reason = "as the config says" if is_said else "as its own config.json says"
    return Target("model", path, config, model, quantization, reason, to)


def _find_elsewhere(location: str, request: Request) -> Target:
    """`embedded`, or a model or adapter on the hub."""
    first, _, rest = location.partition("/")
    if not HUB_ID.match(location) or (rest and Path(first).is_dir()):
        raise RunError(f"{location}: no such folder (looked in {Path.cwd()}). Correct the path, or give a hub id.")
    config = read_intent(None, config=request.config, overrides=request.overrides)
    to = Path("results") / f"evaluation-{location.replace('/', '--')}"
    if location != EMBEDDED:
        adapter = download_adapter(location)
        if adapter is not None:
            read = _read_adapter if (adapter / ADAPTER_CONFIG).is_file() else _read_bundle
            return replace(read(adapter, request), path=location, to=to)
    return _plain_model(config.model.model_copy(update={"name": location}), config, path=location, to=to)


def _with_merged(target: Target, merged: Path | None) -> Target:
    """The target with the merged model that was named, checked to be of this adapter where its report says."""
    merged = merged or target.merged
    if merged is None:
        return target
    if not (merged / MODEL_CONFIG).is_file():
        found = describe_folder(merged)
        raise ModelError(f"--merged {merged}: must be a model folder with {MODEL_CONFIG}, got {found}.")
    return replace(target, merged=merged)


def download_adapter(repository: str) -> Path | None:
    """The folder of a repository that holds an adapter or a bundle; None if it holds neither.

    Raises:
        ModelError: If there is no such repository, or it is neither to be reached nor in the cache.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    reach_repository(repository, revision=None, where="target")
    for name in (ADAPTER_CONFIG, f"adapter/{ADAPTER_CONFIG}"):
        try:
            hf_hub_download(repository, name)
            return Path(snapshot_download(repository, allow_patterns=list(DOWNLOADED)))
        except EntryNotFoundError:
            # Also where only the cache is asked, and lacks it.
            continue
        except (HfHubHTTPError, HFValidationError, OSError):
            break
    # Not an adapter; what else is wrong with it is said where the model is loaded.
    return None
