"""Reads the JSON files of a sweep's folder, and keeps in words what could not be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qlora_ray.errors import RunError
from qlora_ray.runs import read_json
from qlora_ray.runs.records import AnyRecord, read_record

Found = TypeVar("Found")


class FolderFiles:
    """Reads JSON objects, and keeps in words what could not be read."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def read(self, path: Path, *, needed: bool = False) -> Mapping[str, Any]:
        """The object in a file; an empty one if it is missing or broken."""
        found = self._try(lambda: read_json(path), path, needed=needed)
        if found is None:
            return {}
        if not isinstance(found, dict):
            self.problems.append(f"{path}: must be a JSON object, got {type(found).__name__}.")
            return {}
        return found

    def read_record(self, path: Path, kind: type[AnyRecord], *, needed: bool = False) -> AnyRecord | None:
        """The record in a file; None if it is missing or broken, which is then one of the problems.

        Args:
            path: The file that is read.
            kind: TrialRecord, Manifest or Summary.
            needed: Whether it is a problem that there is no such file.
        """
        return self._try(lambda: read_record(path, kind), path, needed=needed)

    def _try(self, read: Callable[[], Found], path: Path, *, needed: bool) -> Found | None:
        if not path.exists():
            if needed:
                self.problems.append(f"{path.name} is missing")
            return None
        try:
            return read()
        except RunError as error:
            self.problems.append(str(error))
            return None
