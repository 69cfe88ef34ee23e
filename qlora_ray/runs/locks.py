"""Locks between processes (flock): the kernel frees them when their process ends, however it ends.

By hand where there is flock, for docs/decisions.md: a look at a lock must work in a folder that can only be read, and
folders are locked too. By py-filelock on Windows, where a look takes the lock for a moment and folders have none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path

from qlora_ray.platforms import BINARY, NO_FOLLOW
from qlora_ray.regular_files import check_regular, open_regular

try:
    import fcntl
except ImportError:
    # Windows.
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked_file(path: Path, *, waits: bool = False) -> Iterator[None]:
    """Holds the lock of a file, which is made with its folders where there is none.

    Args:
        path: The file. Its owner may take it away before it lets go: who waited for it then makes it again.
        waits: Whether to wait for another process that has it.

    Raises:
        BlockingIOError: Another process has it.
        OSError: The file cannot be made, or is none (`filename` says which), or its file system has no locks.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open(path) as stream:
            _lock(stream.fileno(), waits=waits)
            if _is_open_file(path, stream.fileno()):
                yield
                return


def is_locked(path: Path) -> bool:
    """Returns whether a process holds a file's lock, as far as this machine sees; the file need only be readable."""
    try:
        with open_regular(path) as stream:
            # For a moment: who wants the lock just then tries again.
            return _try_lock(stream.fileno(), is_shared=True) is False
    except OSError:
        return False


def hold(descriptor: int) -> None:
    """Locks an open file or folder until it is closed; a file system without locks lets it be."""
    with suppress(OSError):
        _lock(descriptor, waits=True)


@contextmanager
def held_if_free(path: Path) -> Iterator[bool | None]:
    """Holds a file or folder: True if it is this process's now, False if another's, None if none can say."""
    try:
        # A pipe would be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        yield None
        return
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def waited_for(path: Path) -> Iterator[None]:
    """Holds the lock of a file, waiting for who has it; a file system without locks lets it be."""
    with _open(path) as stream:
        hold(stream.fileno())
        yield


def _open(path: Path) -> BufferedWriter:
    """The file, made where there is none.

    Raises OSError for a link, for a pipe, which would wait for a reader, and for a device.
    """
    if path.exists():
        check_regular(path)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_FOLLOW | BINARY, 0o666), "ab")


def _lock(descriptor: int, *, waits: bool, is_shared: bool = False) -> None:
    """Locks an open file until it is closed; raises BlockingIOError where another has it, OSError without locks."""
    if fcntl is not None:
        kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if waits else kind | fcntl.LOCK_NB)
        return
    from filelock import lock_descriptor

    if not lock_descriptor(descriptor, blocking=waits):
        raise BlockingIOError


def _try_lock(descriptor: int, *, is_shared: bool = False) -> bool | None:
    """Returns whether the lock is this process's now; None on a file system without locks."""
    try:
        _lock(descriptor, waits=False, is_shared=is_shared)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_open_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
