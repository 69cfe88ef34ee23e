"""What a resumed sweep goes on with: its own config and space, and what the user may change of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qlora_ray.config.differences import Difference, list_differences
from qlora_ray.config.documents import Document, read_document
from qlora_ray.config.loading import apply_overrides, find_shipped, validate_document
from qlora_ray.config.reuse import PATH_KEYS, anchor_paths, is_overridden, keep_row_choice
from qlora_ray.config.schema import SweepConfig
from qlora_ray.config.trust import check_trust
from qlora_ray.errors import ConfigError
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.records import Manifest
from qlora_ray.search.extension import find_unsound
from qlora_ray.search.parsing import check_grid_size, load_space, parse_space
from qlora_ray.search.space import SearchSpace

NUM_TRIALS = "search.num_trials"
# How long the sweep is, where it runs and where it lies. The space is compared as a space.
FREE = (
    NUM_TRIALS,
    "search.final_seeds",
    "search.time_budget",
    "search.gpu_hours",
    "cluster.",
    "results.",
    "export.",
    "search.space",
    "model.trust_remote_code",
)
# Files may lie elsewhere by now: rows and base are known by their content (preflight.manifest.check_same_inputs).
RELOCATABLE = tuple(".".join(keys) for keys in PATH_KEYS)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ResumeRequest:
    """What the command line says of a resume.

    Attributes:
        config: A YAML file with the whole config anew; None: the manifest's.
        overrides: `--set` values, on top of either.
        num_added_trials: Trials beside those that the sweep had.
        is_trusted: The folder is to be trusted though it is not the user's own.
    """

    config: Path | None = None
    overrides: Sequence[str] = ()
    num_added_trials: int | None = None
    is_trusted: bool = False


def read_resumed(paths: SweepPaths, manifest: Manifest, request: ResumeRequest) -> tuple[SweepConfig, SearchSpace]:
    """Returns the config and the space that a sweep goes on with.

    Args:
        paths: The sweep's folder.
        manifest: What it began with, and went on with.
        request: What the user asks for now.

    Raises:
        ConfigError: If something would change that makes it another sweep, with a line for each such key; or the
            manifest is a stranger's and asks for what only the user may allow.
    """
    was = validate_document(_own_document(manifest))
    now = _read_config(was, manifest, request)
    if request.config is None:
        check_trust(now, manifest, folder=str(paths.root), overrides=request.overrides, is_trusted=request.is_trusted)
    space_was = parse_space(Document(str(paths.manifest), dict(manifest.space)), was)
    if request.config is not None or is_overridden(request.overrides, "search.space"):
        # No file has what was recommended for the base.
        space_now = replace(load_space(now), recommended_points=space_was.recommended_points)
    else:
        # As it was: its file may have changed since.
        space_now = parse_space(Document(str(paths.manifest), dict(manifest.space)), now)
    refused = [
        *(change for change in list_differences(was.model_dump(), now.model_dump()) if not _may_change(change)),
        *find_unsound(space_was, space_now, sampler=was.search.sampler),
    ]
    if refused:
        raise ConfigError(
            [
                f"--resume {paths.root}: a sweep goes on as it began; it can get more trials, wider ranges and another "
                "cluster, and its files may lie elsewhere. Undo these changes, or start a new sweep:",
                *(f"  {change}" for change in refused),
            ]
        )
    check_grid_size(space_now, now)
    return now, space_now


def _own_document(manifest: Manifest) -> Document:
    document = Document("manifest.json", copy.deepcopy(dict(manifest.config)))
    keep_row_choice(document.data)
    anchor_paths(document.data, Path(manifest.folder or "."), only_missing=True)
    return document


def _read_config(was: SweepConfig, manifest: Manifest, request: ResumeRequest) -> SweepConfig:
    document = _own_document(manifest) if request.config is None else read_document(find_shipped(request.config))
    apply_overrides(document, request.overrides)
    if request.num_added_trials is not None:
        if is_overridden(request.overrides, NUM_TRIALS):
            raise ConfigError(f"--add-trials: says how many trials there are, and --set {NUM_TRIALS} too. Drop one.")
        document.set(NUM_TRIALS, was.search.num_trials + request.num_added_trials)
    now = validate_document(document)
    # The manifest has the commit that a branch stood for when the sweep began.
    is_same_base = now.model.name == was.model.name and not COMMIT.fullmatch(now.model.revision or "")
    if is_same_base and COMMIT.fullmatch(was.model.revision or ""):
        now = now.model_copy(update={"model": now.model.model_copy(update={"revision": was.model.revision})})
    return now


def _may_change(change: Difference) -> bool:
    if change.key.startswith(FREE):
        return True
    # A fraction of the rows is no file.
    return change.key in RELOCATABLE and isinstance(change.was, str) and isinstance(change.now, str)
