"""The files of a folder with their sizes and hashes: by it a copy can be held against what was written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from qlora_ray.regular_files import open_regular


def list_files(folder: Path) -> list[str]:
    """Paths of all files below a folder, sorted; raises OSError where it cannot look."""

    def stop(error: OSError) -> None:
        # What this user may not see is there all the same.
        raise error

    found = os.walk(folder, onerror=stop)
    return sorted((Path(at) / name).relative_to(folder).as_posix() for at, _, names in found for name in names)


def describe_file(folder: Path, path: str) -> dict[str, Any]:
    """Returns a file's path in its folder, its size in `bytes`, and its `sha256`; raises OSError if it cannot be read.

    Args:
        folder: The folder.
        path: From there, with `/`.
    """
    file = folder / path
    return {"path": path, "bytes": file.stat().st_size, "sha256": hash_file(file)}


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
