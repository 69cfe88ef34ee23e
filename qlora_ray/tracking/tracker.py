"""What the sweep asks of a tracker, and what it tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedSweep:
    """The sweep, as trackers name it.

    Attributes:
        name: The sweep's name: the runs' group, or the experiment.
        folder: Its folder, for trackers that write files.
    """

    name: str
    folder: Path


class Tracker(Protocol):
    """One tracker of one sweep. All calls come from one thread; each may raise what its library does."""

    def start_trial(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """Begins a trial's run.

        Args:
            trial_id: Its id.
            config: The trial's record, flattened: `params.lora.r`, `base.name`; values are numbers, words or None.
        """

    def log(self, trial_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """Adds figures of one step. Steps of a trial grow, except after a restart from an earlier state."""

    def end_trial(self, trial_id: str, state: str, reason: str, results: Mapping[str, float]) -> None:
        """Ends a trial's run.

        Args:
            trial_id: Its id.
            state: `complete`, `pruned`, `failed` or `interrupted`.
            reason: Why; may be empty.
            results: Its last metrics.
        """

    def close(self) -> None:
        """Ends everything; runs that are open are the sweep's that was stopped."""


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A record's leaves by dotted path; lists become text, since no tracker compares them."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, int | float | str | None) else str(value)
    return found
