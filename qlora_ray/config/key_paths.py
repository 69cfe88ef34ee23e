"""The dotted keys of the config, as `--set` names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel


def known_paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a model and its sections, sections included."""
    paths = []
    for name, info in model.model_fields.items():
        paths.append(prefix + name)
        section = _section_of(info.annotation)
        if section is not None:
            paths.extend(known_paths(section, f"{prefix}{name}."))
    return paths


def leaf_paths(paths: Sequence[str]) -> list[str]:
    """Those that hold a value, and no keys of their own."""
    sections = {path.rpartition(".")[0] for path in paths}
    return [path for path in paths if path not in sections]


def _section_of(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
