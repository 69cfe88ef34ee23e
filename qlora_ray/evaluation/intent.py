"""The config an evaluation goes by: the sweep's own, a file, or the defaults, with `--set` on top."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_ray.config import SweepConfig, load_config, parse_override
from qlora_ray.config.documents import Document
from qlora_ray.config.loading import validate_document
from qlora_ray.errors import ConfigError

# Keys whose values may be paths; in a manifest, from the folder that the sweep was started in.
PATH_KEYS = (
    ("model", "name"),
    ("data", "train"),
    ("data", "validation"),
    ("data", "test"),
    ("evaluate", "database"),
)


def read_intent(manifest: dict[str, Any] | None, *, config: Path | None, overrides: Sequence[str]) -> SweepConfig:
    """Returns the validated config: `config` if there is one, else the manifest's, else the defaults.

    Raises:
        ConfigError: With every problem found, one line each.
    """
    if config is not None or manifest is None:
        return load_config(config, overrides=list(overrides))
    document = Document("manifest.json", copy.deepcopy(manifest["config"]))
    _anchor(document.data, Path(manifest.get("folder") or "."))
    problems: list[str] = []
    for text in overrides:
        try:
            document.set(*parse_override(text))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return validate_document(document)


def is_overridden(overrides: Sequence[str], key: str) -> bool:
    """Whether one of the `a.b=value` texts sets this key, or one under it."""
    return any(text.split("=", 1)[0].strip().startswith(key) for text in overrides)


def _anchor(config: dict[str, Any], folder: Path) -> None:
    """Makes paths that are not found from here ones of the folder the sweep was started in, where they are there."""
    for section, key in PATH_KEYS:
        value = config.get(section, {}).get(key)
        if not isinstance(value, str) or value == "embedded":
            continue
        if not Path(value).expanduser().exists() and (folder / value).exists():
            config[section][key] = str(folder / value)
