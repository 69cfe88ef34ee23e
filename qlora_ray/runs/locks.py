"""Locks between processes (flock): the kernel frees them when their process ends, however it ends.

By hand and not by filelock, for docs/decisions.md: a look at a lock must work in a folder that can only be read, and
folders are locked too.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked_file(path: Path, *, waits: bool = False) -> Iterator[None]:
    """Holds the lock of a file, which is made with its folders where there is none.

    Args:
        path: The file. Its owner may take it away before it lets go: who waited for it then makes it again.
        waits: Whether to wait for another process that has it.

    Raises:
        BlockingIOError: Another process has it.
        OSError: The file cannot be made (`filename` says which), or its file system has no locks.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open_file(path, stream.fileno()):
                yield
                return


def is_locked(path: Path) -> bool:
    """Returns whether a process holds a file's lock, as far as this machine sees; the file need only be readable."""
    try:
        with path.open() as stream:
            # For a moment: who wants the lock just then tries again.
            return _try_lock(stream.fileno(), fcntl.LOCK_SH) is False
    except OSError:
        return False


def hold(descriptor: int) -> None:
    """Locks an open file or folder until it is closed; a file system without locks lets it be."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def held_if_free(path: Path) -> Iterator[bool | None]:
    """Holds a file or folder: True if it is this process's now, False if another's, None if none can say."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield None
        return
    try:
        yield _try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool | None:
    """Returns whether the lock is this process's now; None on a file system without locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
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
