"""Whole files: written to a temporary name, then renamed. A file that is there is whole."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from qlora_ray.errors import RunError

# What the name of a folder ends in while its replacement takes its place.
OLDER = ".old"


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        RunError: If the disk is full or the folder cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private; results are read by others (a dashboard, a colleague).
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise _cannot_write(path, error) from None


def write_json(path: Path, data: Any) -> None:
    """Writes JSON whole or not at all; NaN and infinities become null, which every JSON reader takes."""
    write_text(path, json.dumps(to_plain_json(data), indent=2, allow_nan=False) + "\n")


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: cannot be written: {error.strerror}. Free some space there, or choose another folder.")


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises RunError if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}.") from None


def append_line(path: Path, data: dict[str, Any]) -> None:
    """Appends one JSON line in a single write, so that a reader never sees half of one.

    Raises:
        RunError: If the disk is full or the file cannot be written.
    """
    line = (json.dumps(to_plain_json(data), allow_nan=False) + "\n").encode()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                # A crash cut the last line off: it must not swallow this one.
                line = b"\n" + line
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _cannot_write(path, error) from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines; lines cut off by a crash are left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def to_plain_json(data: Any) -> Any:
    """Data with paths as text, tuples as lists, and numbers that are not finite as None."""
    if isinstance(data, dict):
        return {str(key): to_plain_json(value) for key, value in data.items()}
    if isinstance(data, list | tuple | set | frozenset):
        return [to_plain_json(value) for value in data]
    if isinstance(data, Path):
        return str(data)
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


@contextmanager
def whole_folder(path: Path, *, taken: str | None = None) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name when the block ends well, replacing an older one.

    What a killed process left of such folders is put right first: a new one that was not finished is taken away, and
    an older one that was on its way out comes back if nothing has taken its place.

    Args:
        path: The folder's name.
        taken: What is said where somebody else is at work on the same name; None lets both work, and the last one
            wins.

    Raises:
        RunError: If `taken` is given, and another one is at work there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy_up(path, taken=taken)
    temporary, held = _make_held(path)
    try:
        if taken is not None:
            # Again, now that others see this one: of two that begin at once, never both go on.
            _tidy_up(path, taken=taken, own=temporary)
        temporary.chmod(0o755)
        yield temporary
        older = None
        if path.exists():
            older = path.parent / f"{temporary.name}{OLDER}"
            path.replace(older)
        try:
            temporary.replace(path)
        except OSError:
            if older is not None:
                older.replace(path)
            raise
        if older is not None:
            shutil.rmtree(older)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(held)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that takes its name when the block ends well, replacing an older one.

    What a killed process left of such files is taken away first.
    """
    for left in _find_temporary(path):
        # A folder of such a name is somebody's own, as a file is beside a folder: `.env.defaults`, beside `env`.
        if left.is_file():
            with _held_if_free(left) as is_free:
                if is_free:
                    left.unlink()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            _hold(handle)
            yield stream
            stream.flush()
            os.fsync(handle)
            temporary.chmod(0o644)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _make_held(path: Path) -> tuple[Path, int]:
    """A new temporary folder of `path`, and the descriptor that holds it."""
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            held = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:
            # Another process tidied it up before it was held.
            continue
        _hold(held)
        if temporary.is_dir():
            return temporary, held
        os.close(held)


def _hold(descriptor: int) -> None:
    """Says that somebody is at work here; a file system without locks says nothing, and nothing is tidied up there."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _tidy_up(path: Path, *, taken: str | None = None, own: Path | None = None) -> None:
    """Removes or puts back the temporary folders of `path` that no living process holds.

    Args:
        path: The name that they were to take.
        taken: What is said as RunError if a living process holds one.
        own: One that is this process's.
    """
    for left in _find_temporary(path):
        if not left.is_dir() or left == own:
            continue
        with _held_if_free(left) as is_free:
            if is_free and left.name.endswith(OLDER) and not path.exists():
                left.replace(path)
            elif is_free:
                shutil.rmtree(left, ignore_errors=True)
            elif is_free is False and taken is not None:
                raise RunError(taken)


def _find_temporary(path: Path) -> list[Path]:
    """What has a name as mkdtemp and mkstemp make them of `path`."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}({re.escape(OLDER)})?")
    return [one for one in path.parent.iterdir() if name.fullmatch(one.name) and not one.is_symlink()]


@contextmanager
def _held_if_free(path: Path) -> Iterator[bool | None]:
    """Holds a temporary file or folder: True if it is this process's now, False if another's, None if none can say."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield None
        return
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            except OSError:
                yield None
            else:
                yield True
    finally:
        os.close(descriptor)
