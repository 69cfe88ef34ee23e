"""Presets: configs that ship beside the package and are named by one word, under a file of the user's and `--set`."""

from __future__ import annotations

import difflib
from pathlib import Path

from qlora_ray.config.documents import Document, read_document
from qlora_ray.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "configs" / "presets"
SUFFIX = ".yaml"


def list_presets() -> list[str]:
    """Returns the names of all presets; none where the package was installed without its clone."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def read_preset(name: str) -> Document:
    """Returns a preset's document.

    Raises:
        ConfigError: If there is none of that name.
    """
    known = list_presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"Did you mean {near[0]}?" if near else "Presets are found in configs/presets of a clone."
        raise ConfigError(f"--preset must be one of {', '.join(known) or 'none here'}, got {name!r}. {advice}")
    return read_document(FOLDER / f"{name}{SUFFIX}")
