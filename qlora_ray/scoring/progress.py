"""How far a scoring is, as those hear of it who wait for it."""

from __future__ import annotations

from typing import Protocol


class RowProgress(Protocol):
    """Is told of each part of a scoring, and of its rows as they are done. Scoring goes on the same without one."""

    def begin(self, what: str, total_rows: int) -> None:
        """A part begins, e.g. `answers of 0003 and base on test`, of so many rows, each model's own counted."""

    def add(self, num_rows: int) -> None:
        """So many more rows of the part are done."""


class NoProgress:
    """Where nobody waits."""

    def begin(self, what: str, total_rows: int) -> None:
        """Does nothing."""

    def add(self, num_rows: int) -> None:
        """Does nothing."""
