"""A process that stops at a chosen operation on a folder's files, as one does that is killed, or loses power, there.

Runs in a process of its own: what it puts into the interpreter stays until the end. Every operation is seen before it
is done: through Python's audit events, and where there are none, for `os.write` and `os.fsync`, through functions in
their place.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# What the process exits with at its operation.
STOPPED = 86
# Audit events of operations on files, by what they change: the first path of their arguments.
CHANGES = {"os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.mkdir": 0, "os.truncate": 0, "os.link": 1}
# Replaced by a timer's thread, now and then, and read by nobody who goes on with a sweep.
APART = "live.json"
# What a full disk refuses: all that takes room on it.
GROWING = ("open", "write", "os.mkdir")


class Operation(NamedTuple):
    """One operation.

    Attributes:
        kind: `open`, `write`, `fsync`, `lock`, or the audit event's name.
        path: What it changes, relative to the folder.
        size: Bytes of a write, else 0.
        num_unsynced: Renames before it that a power cut would undo: no fsync of their folder has followed.
    """

    kind: str
    path: str
    size: int = 0
    num_unsynced: int = 0


@dataclass(frozen=True)
class Stop:
    """Where the process stops.

    Attributes:
        at: Before the operation of this number, from 0 on.
        written: Bytes of that operation, a write, which are done all the same.
        undoes_renames: Whether renames are lost that no fsync of their folder followed, as after a power cut.
        is_full: The process goes on, and from this operation on the disk is full.
    """

    at: int
    written: int = 0
    undoes_renames: bool = False
    is_full: bool = False


class WatchedDisk:
    """Counts the operations on a folder's files, and stops the process at one of them.

    Args:
        root: The folder.
        aside: A folder on the same file system, outside `root`, for what a lost rename had replaced.
        stop: Where to stop; None: nowhere.

    Attributes:
        operations: What was done, in order.
    """

    def __init__(self, root: Path, aside: Path, stop: Stop | None) -> None:
        self.operations: list[Operation] = []
        self._root = f"{root.resolve()}/"
        self._aside = aside / str(os.getpid())
        self._aside.mkdir()
        self._stop = stop
        self._renames: list[tuple[Path, Path, Path | None]] = []
        self._is_over = False
        self._write = os.write
        os.write, os.fsync = self._see_write, self._see_fsync
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        # What is opened by its number is a file already.
        if self._is_over or (event == "open" and isinstance(arguments[0], int)):
            return
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_CREAT | os.O_TRUNC):
            if arguments[2] & os.O_TRUNC or not Path(arguments[0]).exists():
                self._do("open", arguments[0])
        elif event == "fcntl.flock":
            self._do("lock", arguments[0])
        elif event == "os.mkdir" and Path(arguments[0]).exists():
            # It will say so, and change nothing.
            return
        elif event in CHANGES:
            is_inside = self._do(event, arguments[CHANGES[event]])
            if is_inside and event == "os.rename":
                self._keep_for_undo(Path(arguments[0]), Path(arguments[1]))

    def _see_write(self, descriptor: int, content: bytes) -> int:
        self._do("write", descriptor, len(content), lambda size: self._write(descriptor, content[:size]))
        return self._write(descriptor, content)

    def _see_fsync(self, descriptor: int) -> None:
        """Notes what is on the disk from here on. The disk itself is not waited for: only this process stops."""
        self._do("fsync", descriptor)
        folder = self._path_of(descriptor)
        self._renames = [rename for rename in self._renames if str(rename[1].parent) != folder]

    def _do(self, kind: str, target: Any, size: int = 0, write: Callable[[int], Any] | None = None) -> bool:
        path = self._path_of(target)
        if path is None or not f"{path}/".startswith(self._root) or APART in path:
            return False
        if self._stop is not None and self._stop.is_full:
            if len(self.operations) >= self._stop.at and kind in GROWING:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif self._stop is not None and len(self.operations) == self._stop.at:
            self._is_over = True
            if write is not None and self._stop.written:
                write(self._stop.written)
            if self._stop.undoes_renames:
                self._undo_renames()
            os._exit(STOPPED)
        self.operations.append(Operation(kind, path[len(self._root) :], size, len(self._renames)))
        return True

    def _path_of(self, target: Any) -> str | None:
        if hasattr(target, "fileno"):
            target = target.fileno()
        if not isinstance(target, int):
            return str(Path(os.fsdecode(target)).absolute())
        try:
            return str(Path(f"/proc/self/fd/{target}").readlink())
        except OSError:
            return None

    def _keep_for_undo(self, source: Path, to: Path) -> None:
        earlier = None
        if to.is_file():
            earlier = self._aside / str(len(self.operations))
            earlier.hardlink_to(to)
        self._renames.append((source.resolve(), to.resolve(), earlier))

    def _undo_renames(self) -> None:
        for source, to, earlier in reversed(self._renames):
            if to.exists() and source.parent.exists():
                to.rename(source)
                if earlier is not None:
                    earlier.rename(to)

    def close(self) -> None:
        """Counts no more."""
        self._is_over = True
