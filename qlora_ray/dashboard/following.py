"""Files that others write, read as they grow: each look costs what is new, not what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qlora_ray.regular_files import open_regular

# What one look takes at most: a sweep's whole events.jsonl is read in several.
MAX_READ_BYTES = 8 * 1024**2


class FileReplaced(Exception):
    """A file that only grows has become another one: its folder was removed and made again."""


class TailedLines:
    """A file of JSON lines that is appended to.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode: int | None = None

    def read_new(self) -> list[dict[str, Any]]:
        """The objects of the lines that were ended since the last call; what is no JSON object is left out.

        Raises:
            FileReplaced: If the file is shorter than before, or another one.
        """
        try:
            status = self._path.stat()
        except OSError:
            if self._inode is not None:
                raise FileReplaced(str(self._path)) from None
            return []
        if self._inode not in (None, status.st_ino) or status.st_size < self._offset:
            raise FileReplaced(str(self._path))
        if status.st_size == self._offset:
            return []
        try:
            with open_regular(self._path) as stream:
                stream.seek(self._offset)
                content = stream.read(MAX_READ_BYTES) + stream.readline()
        except OSError:
            return []
        self._inode = status.st_ino
        # A line without its end is still being written, or was torn, and who appends next takes it away.
        lines = content[: content.rfind(b"\n") + 1]
        self._offset += len(lines)
        return [row for line in lines.splitlines() if (row := _parse_object(line)) is not None]


class WatchedFile:
    """A file that is replaced whole.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None

    def has_changed(self) -> bool:
        """Whether the file is another than at the last call; one that has come or gone is, too."""
        try:
            status = self.path.stat()
            now = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            now = None
        changed = now != self._seen
        self._seen = now
        return changed


def _parse_object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
