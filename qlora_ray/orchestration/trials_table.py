"""trials.csv: a row per trial that has ended, appended as it ends."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from qlora_ray.orchestration.trial_entry import TrialEntry
from qlora_ray.runs.files import append_text, write_text
from qlora_ray.runs.paths import trial_id_of

# Trials that a row comes from, as its record has them.
ORIGINS = ("resumed_from", "seed_of", "cloned_from", "cloned_at")


class TrialsTable:
    """Writes trials.csv. Its columns are those of the first row: all trials of a space have the same parameters.

    Args:
        path: The file.
        objectives: Names of the objectives, a column each.
    """

    def __init__(self, path: Path, *, objectives: Sequence[str]) -> None:
        self._path = path
        self._objectives = tuple(objectives)
        self._columns: list[str] = []

    def rewrite(self, entries: Iterable[TrialEntry]) -> None:
        """Writes the table anew, by number: when a sweep ends, and when it is resumed.

        Args:
            entries: The trials that have ended.
        """
        entries = sorted(entries, key=lambda entry: entry.number)
        self._columns = self._columns_of(entries)
        write_text(self._path, self._format(entries, has_header=True))

    def append(self, entry: TrialEntry, list_ended: Callable[[], Iterable[TrialEntry]]) -> None:
        """Adds the row of a trial that has just ended, in a single write.

        Args:
            entry: The trial.
            list_ended: Lists all that have ended, it among them: for a trial with a parameter that has no column.
        """
        if not self._columns or not set(entry.params) <= set(self._columns):
            self.rewrite(list_ended())
        else:
            append_text(self._path, self._format([entry], has_header=False))

    def _columns_of(self, entries: Sequence[TrialEntry]) -> list[str]:
        paths = sorted({path for entry in entries for path in entry.params})
        return ["trial", "state", *self._objectives, "reports", "train_s", "tokens_per_s", *paths, "cause", *ORIGINS]

    def _format(self, entries: Iterable[TrialEntry], *, has_header: bool) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self._columns, lineterminator="\n")
        if has_header:
            writer.writeheader()
        for entry in entries:
            writer.writerow(
                {
                    "trial": entry.id,
                    "state": entry.state,
                    **{name: entry.value_of(name) for name in self._objectives},
                    "reports": len(entry.intermediate),
                    "train_s": round(entry.train_s, 3),
                    "tokens_per_s": entry.tokens_per_s,
                    **entry.params,
                    "cause": entry.cause,
                    **dict(zip(ORIGINS, _origins_of(entry), strict=True)),
                }
            )
        return buffer.getvalue()


def _origins_of(entry: TrialEntry) -> list[str | int | None]:
    clone = entry.clone_of
    numbers = (entry.resumed_from, entry.seed_of, None if clone is None else clone.number)
    return [
        *(None if number is None else trial_id_of(number) for number in numbers),
        None if clone is None else clone.at,
    ]
