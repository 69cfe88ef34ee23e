"""Refuses damaged files: a bundle must not say "not recorded" of a value that only cannot be read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from qlora_ray.errors import RunError
from qlora_ray.runs.typed_json import find_type_error


def check_types(data: Any, kind: type, *, where: Path, keys: Collection[str] | None = None) -> None:
    """Refuses a file in which a value is of another type than its record has.

    Args:
        data: The file's content, as `json.loads` returned it.
        kind: The record, a dataclass that `runs.typed_json.parse_record` reads.
        where: The file, for the message.
        keys: The parts of the file that count; None for all.

    Raises:
        RunError: If there is such a value, or the file is no JSON object.
    """
    if not isinstance(data, dict):
        raise RunError(f"{where}: must be a JSON object, got {type(data).__name__}. Restore it.")
    counting = data if keys is None else {key: value for key, value in data.items() if key in keys}
    error = find_type_error(kind, counting)
    if error is not None:
        raise RunError(f"{where}: {error}. Restore it.")
