"""The config an evaluation goes by: the sweep's own, a file, or the defaults, with `--set` on top."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_ray.config import SweepConfig, load_config, parse_override
from qlora_ray.config.data_names import split_brackets
from qlora_ray.config.documents import Document, read_document
from qlora_ray.config.loading import apply_overrides, validate_document
from qlora_ray.config.schema import WeightedSource
from qlora_ray.runs.ownership import is_own
from qlora_ray.runs.records import Manifest, modernize_config

# Keys whose values may be paths; in a manifest, from the folder that the sweep was started in.
PATH_KEYS = (
    ("model", "name"),
    ("data", "train"),
    ("data", "validation"),
    ("data", "test"),
    ("evaluate", "database"),
)
# The key that lets a model's own code run.
TRUST = "model.trust_remote_code"


def read_intent(manifest: Manifest | None, *, config: Path | None, overrides: Sequence[str]) -> SweepConfig:
    """Returns the validated config: `config` if there is one, else the manifest's, else the defaults.

    Args:
        manifest: The manifest of the sweep that the target came from; None if there is none.
        config: A YAML file that the user named.
        overrides: The user's `--set` values, as `section.key=value`.

    Raises:
        ConfigError: With every problem found, one line each.
    """
    if config is not None or manifest is None:
        return load_config(config, overrides=list(overrides))
    document = Document("manifest.json", copy.deepcopy(dict(manifest.config)))
    keep_row_choice(document.data)
    anchor_paths(document.data, Path(manifest.folder or "."))
    apply_overrides(document, overrides)
    return validate_document(document)


def read_bundle_config(path: Path, *, overrides: Sequence[str]) -> SweepConfig:
    """Returns the validated config of a bundle, which may be one of an older version.

    Raises:
        ConfigError: With every problem found, one line each.
    """
    document = read_document(path)
    document.data = modernize_config(document.data)
    keep_row_choice(document.data)
    apply_overrides(document, overrides)
    return validate_document(document)


def distrust(
    config: SweepConfig, overrides: Sequence[str], *, manifest: Manifest | None = None
) -> tuple[SweepConfig, list[str]]:
    """Returns a config that came with the target, without the right to run the model's code, and a note if it had it.

    The target may be a stranger's: only the user's own --set, --config or sweep may let its code run.

    Args:
        config: The config that came with the target, with the overrides in it.
        overrides: The user's `--set` values, as `section.key=value`.
        manifest: That of the sweep which the config is from; None if there is none.
    """
    if not config.model.trust_remote_code or is_overridden(overrides, TRUST):
        return config, []
    # The mark is of the name that the code belongs to, too.
    if manifest is not None and not is_overridden(overrides, "model.name") and is_own(manifest):
        return config, []
    model = config.model.model_copy(update={"trust_remote_code": False})
    note = (
        f"{TRUST}: true came with the target and is not followed; if you trust its code, allow it with --set "
        f"{TRUST}=true"
    )
    return config.model_copy(update={"model": model}), [note]


def explain_distrust(error: Exception, notes: Sequence[str]) -> str:
    """Returns an error's message with the note of `distrust`, if there is one: that its code may not run can be why a
    model cannot be loaded."""
    return " ".join([str(error), *(f"Note: {note}." for note in notes if note.startswith(TRUST))])


def drop_foreign_revision(config: SweepConfig, overrides: Sequence[str], *, own_name: str | None) -> SweepConfig:
    """Returns a config whose base was named anew by --set without the revision, which is one of the old base.

    Args:
        config: The config that came with the target, with the overrides in it.
        overrides: The user's `--set` values, as `section.key=value`.
        own_name: The target's own base.
    """
    is_other = is_overridden(overrides, "model.name") and config.model.name != own_name
    if not is_other or is_overridden(overrides, "model.revision"):
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"revision": None})})


def is_overridden(overrides: Sequence[str], key: str) -> bool:
    """Whether one of the `a.b=value` texts sets this key, one under it, or a section that has it."""
    return any(_sets(*parse_override(text), key) for text in overrides)


def _sets(dotted: str, value: Any, key: str) -> bool:
    if key == dotted or key.startswith(f"{dotted}."):
        for step in key[len(dotted) :].split(".")[1:]:
            if not isinstance(value, dict) or step not in value:
                return False
            value = value[step]
        return True
    return dotted.startswith(f"{key}.")


def with_absolute_paths(config: SweepConfig, folder: Path) -> SweepConfig:
    """The config for processes that work in another folder: relative paths that are there become absolute ones.

    Args:
        config: As the user wrote it, which records keep.
        folder: Where the user is.
    """
    values = config.model_dump()
    anchor_paths(values, folder.resolve())
    written = config.model_dump()
    changed: dict[str, dict[str, Any]] = {}
    for section, key in PATH_KEYS:
        value = values[section][key]
        if value != written[section][key]:
            several = isinstance(value, list)
            changed.setdefault(section, {})[key] = [WeightedSource(**one) for one in value] if several else value
    return config.model_copy(
        update={section: getattr(config, section).model_copy(update=update) for section, update in changed.items()}
    )


def keep_row_choice(config: dict[str, Any]) -> None:
    """Has a config that a version without `data.row_choice` wrote take the rows that it took: the first ones.

    Not where manifests are read: their owner's mark is on the config as it was written.

    Args:
        config: A whole config as a sweep or bundle keeps it, which is changed.
    """
    data = config.get("data")
    if isinstance(data, dict):
        data.setdefault("row_choice", "first")


def anchor_paths(config: dict[str, Any], folder: Path, *, only_missing: bool = False) -> None:
    """Makes relative paths ones of the folder the sweep was started in, where they are there; else they stay.

    Args:
        config: A manifest's config, which is changed.
        folder: Where the sweep was started.
        only_missing: A path that is there from the working directory stays, too.
    """
    for section, key in PATH_KEYS:
        values = config.get(section)
        value = values.get(key) if isinstance(values, dict) else None
        if isinstance(value, list):
            for one in value:
                if isinstance(one, dict) and isinstance(one.get("source"), str):
                    one["source"] = _anchor(one["source"], key, folder, only_missing=only_missing, is_data=True)
        elif isinstance(value, str):
            anchored = _anchor(value, key, folder, only_missing=only_missing, is_data=section == "data")
            config[section][key] = anchored


def _anchor(value: str, key: str, folder: Path, *, only_missing: bool, is_data: bool) -> str:
    if value == "embedded":
        return value
    # `test` may be a split of a hub dataset, whatever is called so there.
    may_be_path = key not in ("validation", "test") or "/" in value or "." in value
    place, brackets = split_brackets(value, folder) if is_data else (value, "")
    is_there = may_be_path and (folder / place).exists() and not (only_missing and Path(place).exists())
    return f"{folder / place}{brackets}" if is_there else value
