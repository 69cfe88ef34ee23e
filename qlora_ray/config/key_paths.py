"""The dotted keys of the config, as `--set` names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_origin

from pydantic import BaseModel

NAME = "NAME"


def known_paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a model and its sections, sections included; NAME stands for one that the user gives."""
    paths = []
    for name, info in model.model_fields.items():
        paths.append(prefix + name)
        section = _section_of(info.annotation)
        if section is not None:
            by_name = f"{NAME}." if get_origin(info.annotation) is dict else ""
            paths.extend(known_paths(section, f"{prefix}{name}.{by_name}"))
    return paths


def name_paths(paths: Sequence[str], dotted: str) -> list[str]:
    """The keys with the names of a written one: `heads.emotion.weight` for heads.NAME.weight where it has emotion."""
    written = dotted.split(".")
    return [
        ".".join(
            written[at] if part == NAME and len(written) > at and path.split(".")[:at] == written[:at] else part
            for at, part in enumerate(path.split("."))
        )
        for path in paths
    ]


def leaf_paths(paths: Sequence[str]) -> list[str]:
    """Those that hold a value, and no keys of their own."""
    sections = {".".join(path.split(".")[:depth]) for path in paths for depth in range(1, path.count(".") + 1)}
    return [path for path in paths if path not in sections]


def _section_of(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
