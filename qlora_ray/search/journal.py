"""The study's journal file, in Optuna's format, written by the one driver that holds the sweep's lock.

Optuna's own JournalFileBackend takes a lock file, opens the file and waits for the disk at every operation, eight or
more times for each trial that is asked for, and reads the file again after each. A single writer needs no lock, and the
disk only where something follows from what was written.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import BaseJournalBackend
from optuna.storages.journal._storage import JournalOperation

from qlora_ray.platforms import BINARY, NO_FOLLOW
from qlora_ray.regular_files import check_regular

# What others act upon: the study itself, a trial that is taken from the queue, and a trial's end.
SYNCED_AT_ONCE = {
    JournalOperation.CREATE_STUDY,
    JournalOperation.SET_STUDY_USER_ATTR,
    JournalOperation.SET_TRIAL_STATE_VALUES,
}


class SweepJournal(BaseJournalBackend):
    """Optuna's operations, a line of JSON each. Used by one thread at a time.

    What is appended survives the end of the process at once, and a power cut from the next `sync` on. A last line that
    a power cut has torn is cut off when the file is opened.

    Args:
        path: The file; made where there is none.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            check_regular(path)
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_FOLLOW | BINARY, 0o644)
        # Not __del__, which at the end of the process comes after `os` has gone.
        weakref.finalize(self, os.close, self._file)
        self._size = self._cut_torn_line()
        self._is_dirty = False
        self._held: list[bytes] | None = None
        # Operations that were appended and not read back; `_first` is the number of the first of them.
        self._tail: list[dict[str, Any]] = []
        self._first: int | None = None

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """The operations from this number on: those that were appended since the last reading, or all of the file."""
        if self._first is None or log_number_from < self._first:
            return self._read_file(log_number_from)
        unread = self._tail[log_number_from - self._first :]
        self._tail, self._first = [], self._first + len(self._tail)
        return unread

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends operations in a single write.

        Raises:
            OSError: If the disk is full; then nothing of them is left in the file.
        """
        lines = [json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs]
        if self._held is not None:
            self._held += lines
        else:
            self._write(b"".join(lines))
        # As a reader of the file would have them.
        self._tail += [json.loads(line) for line in lines]
        if self._held is None and any(log["op_code"] in SYNCED_AT_ONCE for log in logs):
            self.sync()

    @contextmanager
    def one_write(self) -> Iterator[None]:
        """Writes what is appended in the block together, and waits for the disk.

        A driver that is killed leaves all of it or nothing.
        """
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            self._write(b"".join(held))
            self.sync()

    def sync(self) -> None:
        """Waits until all that was appended is on the disk."""
        if self._is_dirty:
            os.fsync(self._file)
            self._is_dirty = False

    def _write(self, content: bytes) -> None:
        if not content:
            return
        try:
            if os.write(self._file, content) < len(content):
                raise OSError(28, os.strerror(28), str(self._path))
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(content)
        self._is_dirty = True

    def _read_file(self, log_number_from: int) -> list[dict[str, Any]]:
        logs = [json.loads(line) for line in self._path.read_bytes().splitlines()]
        self._tail, self._first = [], len(logs)
        return logs[log_number_from:]

    def _cut_torn_line(self) -> int:
        content = self._path.read_bytes()
        size = content.rfind(b"\n") + 1
        if size < len(content):
            os.ftruncate(self._file, size)
        return size


def journal_of(study: optuna.Study) -> SweepJournal:
    """The journal behind a study of `open_study`."""
    journal = getattr(study._storage, "_backend", None)
    assert isinstance(journal, SweepJournal), "the study must be one of open_study's"
    return journal
