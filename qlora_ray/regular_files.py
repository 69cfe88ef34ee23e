"""Files that others wrote are opened only where they are regular ones, and JSON that no reader can hold is an error.

A pipe waits for a writer for ever, and a device may never end.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

# What a file can be that is neither a regular one nor a folder.
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# An escape of half a character, alone or one of a pair.
_HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_HALF = re.compile(r"[\ud800-\udfff]")


def check_regular(path: Path) -> None:
    """Raises OSError unless a path leads to a regular file, which is not opened; ValueError for NUL in the path."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, f"{_describe(mode)}, not a regular file", str(path))


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file for reading; raises as `check_regular` does."""
    check_regular(path)
    return path.open("rb")


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; raises as `check_regular` does."""
    check_regular(path)
    return path.read_bytes()


def load_json(path: Path) -> Any:
    """The JSON of a regular file. Half characters, which no UTF-8 can hold, come as question marks.

    Raises:
        OSError: If it cannot be read, or is no regular file.
        ValueError: If it is no JSON in UTF-8, is nested too deeply, or has a number of thousands of digits.
    """
    return parse_json(read_bytes(path))


def parse_json(content: bytes) -> Any:
    """As `load_json`, of what has been read already."""
    # With or without the mark that editors of Windows begin with.
    text = content.decode("utf-8-sig")
    try:
        found = json.loads(text)
        return _without_halves(found) if _HALF_ESCAPE.search(text) else found
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def replace_halves(text: str) -> str:
    """Text that UTF-8 can hold: half characters become question marks."""
    return text if text.isascii() else _HALF.sub("?", text)


def resolve_path(path: Path) -> Path:
    """The whole path with links followed; one that leads in a circle as far as it goes (Path.resolve raises there)."""
    return Path(os.path.realpath(path))


def find_irregular(folder: Path) -> str | None:
    """The first entry of a folder that is neither a file nor a folder, and what it is: for libraries that open all.

    What a link leads to counts. None where there is none, or the folder cannot be listed.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return None
    for entry in entries:
        try:
            mode = entry.stat().st_mode
        except OSError:  # a link to nothing, or in a circle: no library finds a file there
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return f"{_describe(mode)} in {entry.name}"
    return None


def _describe(mode: int) -> str:
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")


def _without_halves(value: Any) -> Any:
    if isinstance(value, str):
        return replace_halves(value)
    if isinstance(value, dict):
        return {_without_halves(key): _without_halves(item) for key, item in value.items()}
    return [_without_halves(item) for item in value] if isinstance(value, list) else value
