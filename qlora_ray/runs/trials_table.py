"""trials.csv: a row per trial that has ended, made of its record alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qlora_ray.runs.files import append_text, write_text
from qlora_ray.runs.records import TrialRecord

# Trials that a row comes from, as its record has them.
ORIGINS = ("resumed_from", "seed_of", "cloned_from", "cloned_at")


class TrialsTable:
    """Writes trials.csv: the rows of trials by number, and at the end of the file those that have ended since.

    Args:
        path: The file.
        objectives: Names of the objectives, a column each.
    """

    def __init__(self, path: Path, *, objectives: Sequence[str]) -> None:
        self._path = path
        self._objectives = tuple(objectives)
        self._rows: dict[int, dict[str, Any]] = {}
        self._params: set[str] = set()
        self._columns: list[str] = []

    def take(self, record: TrialRecord) -> None:
        """Takes the row of a trial that has ended; the file is not written yet.

        Args:
            record: As it was read, or `records.as_read` gives it: what the file of a record cannot hold, such as NaN,
                is in no row either.
        """
        self._params |= set(record.params)
        self._rows[record.number] = {
            "trial": record.trial,
            "state": record.state,
            **{name: record.value_of(name) for name in self._objectives},
            "reports": len(record.reports),
            "train_s": record.times.train_s,
            "tokens_per_s": record.tokens_per_s,
            **record.params,
            "cause": record.cause,
            **{name: getattr(record, name) for name in ORIGINS},
        }

    def append(self, record: TrialRecord) -> None:
        """Adds the row of a trial that has just ended, in a single write; the table anew if it has another column."""
        self.take(record)
        if not self._columns or not self._params <= set(self._columns):
            self.rewrite()
        else:
            append_text(self._path, _format([self._rows[record.number]], self._columns, has_header=False))

    def rewrite(self) -> None:
        """Writes the table anew, by number: when a sweep ends, and when it is resumed."""
        self._columns = self._list_columns()
        write_text(self._path, self.format())

    def format(self) -> str:
        """The whole table as text, by number."""
        rows = [self._rows[number] for number in sorted(self._rows)]
        return _format(rows, self._list_columns(), has_header=True)

    def _list_columns(self) -> list[str]:
        measured = ("reports", "train_s", "tokens_per_s")
        return ["trial", "state", *self._objectives, *measured, *sorted(self._params), "cause", *ORIGINS]


def _format(rows: Iterable[dict[str, Any]], columns: Sequence[str], *, has_header: bool) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    if has_header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
