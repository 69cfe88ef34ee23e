"""Whole files: written to a temporary name, then renamed. A file that is there is whole."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qlora_ray.errors import RunError
from qlora_ray.platforms import BINARY, NO_FOLLOW
from qlora_ray.regular_files import load_json, parse_json, read_bytes, replace_halves
from qlora_ray.runs.locks import hold
from qlora_ray.runs.whole import whole_file


def write_text(path: Path, text: str, *, is_synced: bool = True) -> None:
    """Writes a text file whole or not at all.

    Args:
        path: The file.
        text: Its content.
        is_synced: Whether it is on the disk when this returns; otherwise a power cut may leave the file before it.

    Raises:
        RunError: If the disk is full or the folder cannot be written.
    """
    write_bytes(path, replace_halves(text).encode(), is_synced=is_synced)


def write_bytes(path: Path, content: bytes, *, is_synced: bool = True) -> None:
    """Writes a file whole or not at all, as `write_text` does."""
    try:
        with whole_file(path, is_synced=is_synced) as stream:
            stream.write(content)
    except OSError as error:
        raise _cannot_write(path, error) from None


def write_json(path: Path, data: Any) -> None:
    """Writes JSON whole or not at all; NaN and infinities become null, which every JSON reader takes."""
    write_text(path, format_json(data))


def format_json(data: Any) -> str:
    """JSON as `write_json` writes it."""
    return json.dumps(to_plain_json(data), indent=2, allow_nan=False) + "\n"


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: cannot be written: {error.strerror}. Free some space there, or choose another folder.")


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises RunError if it is missing or not JSON."""
    try:
        return load_json(path)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}.") from None


def append_line(path: Path, data: Mapping[str, Any], *, is_synced: bool = False) -> None:
    """Appends one JSON line, as `append_lines` does."""
    append_lines(path, [data], is_synced=is_synced)


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]], *, is_synced: bool = False) -> None:
    """Appends JSON lines in a single write, so that a reader never sees half of one.

    A last line that a crash cut off is mended first: it must not swallow the next.

    Args:
        path: The file; made with its folder where there is none.
        rows: JSON values, one for each line.
        is_synced: Whether they are on the disk when this returns.

    Raises:
        RunError: If the disk is full or the file cannot be written; then nothing of them is left in it.
    """
    # ASCII: some characters of JSON text (U+2028) end a line for those who read it by lines.
    text = "".join(json.dumps(to_plain_json(row), allow_nan=False) + "\n" for row in rows)
    append_text(path, text, is_synced=is_synced)


def append_text(path: Path, text: str, *, is_synced: bool = False) -> None:
    """Appends whole lines in a single write, as `append_lines` does."""
    content = replace_halves(text).encode()
    try:
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_FOLLOW | BINARY, 0o644)
        try:
            size = _mend_last_line(descriptor)
            if os.write(descriptor, content) < len(content):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if is_synced:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _cannot_write(path, error) from None


def mend_lines(path: Path) -> None:
    """Takes away what a crash left of a line at the end of a file, or ends that line where only its end is missing."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | NO_FOLLOW | BINARY)
    except FileNotFoundError:
        return
    try:
        _mend_last_line(descriptor)
    finally:
        os.close(descriptor)


def _mend_last_line(descriptor: int) -> int:
    """As `mend_lines`, and holds the file until it is closed; returns its size then.

    Another thread or process may append meanwhile: what it writes must not be taken for a torn line, nor be cut off.
    """
    hold(descriptor)
    size = os.fstat(descriptor).st_size
    if not size or _read_from(descriptor, size - 1) == b"\n":
        return size
    content = _read_from(descriptor, 0)
    begin = content.rfind(b"\n") + 1
    try:
        json.loads(content[begin:])
    except (ValueError, RecursionError):
        os.ftruncate(descriptor, begin)
        return begin
    os.write(descriptor, b"\n")
    return size + 1


def _read_from(descriptor: int, position: int) -> bytes:
    # What is written goes to the end all the same.
    os.lseek(descriptor, position, os.SEEK_SET)
    with os.fdopen(descriptor, "rb", closefd=False) as stream:
        return stream.read()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads lines of JSON objects; those cut off by a crash, or damaged, are left out. None where there is no file."""
    try:
        lines = read_bytes(path).splitlines()
    except (OSError, ValueError):
        return []
    rows = []
    for line in lines:
        with suppress(ValueError):
            rows.append(parse_json(line))
    return [row for row in rows if isinstance(row, dict)]


def to_plain_json(data: Any) -> Any:
    """Data as it is read again: paths as text, without half characters, tuples as lists, numbers that are not finite as
    None."""
    if isinstance(data, str):
        return replace_halves(data)
    if isinstance(data, dict):
        return {replace_halves(str(key)): to_plain_json(value) for key, value in data.items()}
    if isinstance(data, list | tuple | set | frozenset):
        return [to_plain_json(value) for value in data]
    if isinstance(data, Path):
        return replace_halves(str(data))
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
