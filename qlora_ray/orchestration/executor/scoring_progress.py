"""How far an executor is with the rows that it scores: told by its engine, asked for while that goes on."""

from __future__ import annotations

import threading
from typing import Any


class ScoringProgress:
    """The part of a scoring that is under way, from any thread; meets `scoring.progress.RowProgress`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._what: str | None = None
        self._done = self._total = 0

    def begin(self, what: str, total_rows: int) -> None:
        """A part begins, in the place of the one before: what is done, and of how many rows."""
        with self._lock:
            self._what, self._done, self._total = what, 0, total_rows

    def add(self, num_rows: int) -> None:
        """So many more rows of the part are done."""
        with self._lock:
            self._done += num_rows

    def end(self) -> None:
        """Nothing is scored any more."""
        with self._lock:
            self._what = None

    def to_dict(self) -> dict[str, Any] | None:
        """The part under way as `what`, and its rows as `done` and `total`; None while nothing is scored."""
        with self._lock:
            return None if self._what is None else {"what": self._what, "done": self._done, "total": self._total}
